"""Conditioner networks, as Keras layers."""

from tfp_realnvp.networks.batch_norm import BatchNorm
from tfp_realnvp.networks.conditioner import Conditioner
from tfp_realnvp.networks.conv_resnet import ConvResNet
from tfp_realnvp.networks.shallow_conv import ShallowConv
from tfp_realnvp.networks.weight_norm_conv import WeightNormConv2D

__all__ = ["BatchNorm", "Conditioner", "ConvResNet", "ShallowConv", "WeightNormConv2D"]
