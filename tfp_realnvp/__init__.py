"""Real NVP (Dinh, Sohl-Dickstein, Bengio 2017) for TensorFlow Probability and Keras 3."""

from tfp_realnvp.bijectors import (
    PAPER_CONFIGURATIONS,
    ActNorm,
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
from tfp_realnvp.callbacks import LearningRateBudget, TrainingCheckpoint, save_weights
from tfp_realnvp.diagnosis import NonFiniteLossError
from tfp_realnvp.export import export_saved_model
from tfp_realnvp.model import FlowModel
from tfp_realnvp.networks import Conditioner, ConvResNet, ShallowConv, WeightNormConv2D
from tfp_realnvp.optimizers import FusedAdam
from tfp_realnvp.pixels import bits_per_dim, dequantize, to_uint8

__all__ = [
    "PAPER_CONFIGURATIONS",
    "ActNorm",
    "AffineCoupling",
    "BatchNormalization",
    "ChannelMask",
    "CheckerboardMask",
    "Conditioner",
    "ConvResNet",
    "FactorOut",
    "FlowBijector",
    "FlowChain",
    "FlowModel",
    "FusedAdam",
    "LearningRateBudget",
    "NonFiniteLossError",
    "PixelLogit",
    "RealNVPImage",
    "ShallowConv",
    "Squeeze",
    "TrainingCheckpoint",
    "WeightNormConv2D",
    "bits_per_dim",
    "dequantize",
    "export_saved_model",
    "save_weights",
    "to_uint8",
]
