"""Conditioner networks, as Keras layers."""

from tfp_realnvp.networks.conv_resnet import ConvResNet
from tfp_realnvp.networks.weight_norm_conv import WeightNormConv2D

__all__ = ["ConvResNet", "WeightNormConv2D"]
