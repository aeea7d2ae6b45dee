"""Real NVP (Dinh, Sohl-Dickstein, Bengio 2017) for TensorFlow Probability and Keras 3."""

from tfp_realnvp.bijectors import (
    AffineCoupling,
    BatchNormalization,
    ChannelMask,
    CheckerboardMask,
    FactorOut,
    FlowBijector,
    FlowChain,
    PixelLogit,
    RealNVPImage,
    Squeeze,
)
from tfp_realnvp.networks import ConvResNet, WeightNormConv2D

__all__ = [
    "AffineCoupling",
    "BatchNormalization",
    "ChannelMask",
    "CheckerboardMask",
    "ConvResNet",
    "FactorOut",
    "FlowBijector",
    "FlowChain",
    "PixelLogit",
    "RealNVPImage",
    "Squeeze",
    "WeightNormConv2D",
]
