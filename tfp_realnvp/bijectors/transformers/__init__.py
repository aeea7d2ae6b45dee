"""Transformers: elementwise bijections of couplings, whose parameters a network predicts."""

from tfp_realnvp.bijectors.transformers.affine import Additive, Affine, SigmoidAffine
from tfp_realnvp.bijectors.transformers.logistic_mixture import LogisticMixture
from tfp_realnvp.bijectors.transformers.rational_quadratic_spline import RationalQuadraticSpline
from tfp_realnvp.bijectors.transformers.transformer import Transformer, TransformerFn

__all__ = [
    "Additive",
    "Affine",
    "LogisticMixture",
    "RationalQuadraticSpline",
    "SigmoidAffine",
    "Transformer",
    "TransformerFn",
]
