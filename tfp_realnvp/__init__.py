"""Real NVP (Dinh, Sohl-Dickstein, Bengio 2017) for TensorFlow Probability and Keras 3."""

from tfp_realnvp.bijectors import (
    PAPER_CONFIGURATIONS,
    ActNorm,
    Additive,
    Affine,
    AffineCoupling,
    BatchNormalization,
    ChannelMask,
    CheckerboardMask,
    Coupling,
    EmbeddedCondition,
    FactorOut,
    FlowBijector,
    FlowChain,
    InvertibleConv1x1,
    LogisticMixture,
    PixelLogit,
    RationalQuadraticSpline,
    RealNVPImage,
    Squeeze,
    Transformer,
)
from tfp_realnvp.distributions import (
    ConditionalDistribution,
    ConditionedDistribution,
    VariationalDequantization,
    class_log_probs,
    condition,
)
from tfp_realnvp.networks import (
    ConditionEmbedding,
    Conditioner,
    ConvResNet,
    ShallowConv,
    WeightNormConv2D,
)
from tfp_realnvp.pixels import bits_per_dim, dequantize, to_uint8
from tfp_realnvp.serialization.saved_model import export_saved_model
from tfp_realnvp.training.callbacks import LearningRateBudget, TrainingCheckpoint, save_weights
from tfp_realnvp.training.diagnosis import NonFiniteLossError
from tfp_realnvp.training.flow_model import FlowModel
from tfp_realnvp.training.optimizers import FusedAdam

__all__ = [
    "PAPER_CONFIGURATIONS",
    "ActNorm",
    "Additive",
    "Affine",
    "AffineCoupling",
    "BatchNormalization",
    "ChannelMask",
    "CheckerboardMask",
    "ConditionEmbedding",
    "ConditionalDistribution",
    "ConditionedDistribution",
    "Conditioner",
    "ConvResNet",
    "Coupling",
    "EmbeddedCondition",
    "FactorOut",
    "FlowBijector",
    "FlowChain",
    "FlowModel",
    "FusedAdam",
    "InvertibleConv1x1",
    "LearningRateBudget",
    "LogisticMixture",
    "NonFiniteLossError",
    "PixelLogit",
    "RationalQuadraticSpline",
    "RealNVPImage",
    "ShallowConv",
    "Squeeze",
    "TrainingCheckpoint",
    "Transformer",
    "VariationalDequantization",
    "WeightNormConv2D",
    "bits_per_dim",
    "class_log_probs",
    "condition",
    "dequantize",
    "export_saved_model",
    "save_weights",
    "to_uint8",
]
