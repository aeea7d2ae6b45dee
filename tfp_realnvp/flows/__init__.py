"""Whole flows, and the functions that put them together."""

from tfp_realnvp.flows.coupling_layer import coupling_layer, network_of
from tfp_realnvp.flows.image_flow import ImageFlow, image_flow
from tfp_realnvp.flows.multi_scale import multi_scale
from tfp_realnvp.flows.patch_flow import patch_flow
from tfp_realnvp.flows.real_nvp_image import PAPER_CONFIGURATIONS, RealNVPImage
from tfp_realnvp.flows.real_nvp_vector import RealNVPVector, VectorFlow
