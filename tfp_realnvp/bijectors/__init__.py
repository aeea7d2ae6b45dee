"""Bijectors of flows, with the interface of `tfb.Bijector`. `forward` maps latents to data."""

from tfp_realnvp.bijectors.coupling import AffineCoupling, Coupling
from tfp_realnvp.bijectors.flow_bijector import FlowBijector, Pass, call_options
from tfp_realnvp.bijectors.flow_chain import ConditionalBijector, FactorOut, FlowChain
from tfp_realnvp.bijectors.invertible_conv1x1 import InvertibleConv1x1
from tfp_realnvp.bijectors.logistic_mixture import LogisticMixture
from tfp_realnvp.bijectors.masks import ChannelMask, CheckerboardMask, Mask, SpatialMask
from tfp_realnvp.bijectors.normalization import ActNorm, BatchNormalization
from tfp_realnvp.bijectors.pixel_logit import PixelLogit
from tfp_realnvp.bijectors.rational_quadratic_spline import RationalQuadraticSpline
from tfp_realnvp.bijectors.real_nvp_coupling import BijectorCoupling, real_nvp_coupling
from tfp_realnvp.bijectors.squeeze import Squeeze
from tfp_realnvp.bijectors.standardization import Standardization
from tfp_realnvp.bijectors.transformers import Additive, Affine, SigmoidAffine, Transformer
