"""Real NVP (Dinh, Sohl-Dickstein, Bengio 2017) for TensorFlow Probability and Keras 3."""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from tfp_realnvp.bijectors import (
    ActNorm,
    Additive,
    Affine,
    AffineCoupling,
    BatchNormalization,
    BijectorCoupling,
    ChannelMask,
    CheckerboardMask,
    Coupling,
    FactorOut,
    FlowBijector,
    FlowChain,
    InvertibleConv1x1,
    LogisticMixture,
    Mask,
    Pass,
    PixelLogit,
    RationalQuadraticSpline,
    SigmoidAffine,
    SpatialMask,
    Squeeze,
    Standardization,
    Transformer,
    call_options,
    real_nvp_coupling,
)
from tfp_realnvp.distributions import (
    ClassMixture,
    ClusterMixture,
    Clusters,
    ConditionalBase,
    VariationalDequantization,
    class_log_joint,
    class_log_probs,
    condition,
)
from tfp_realnvp.evaluation.maps import log_prob_map
from tfp_realnvp.evaluation.scores import log_prob
from tfp_realnvp.flows import (
    PAPER_CONFIGURATIONS,
    ImageFlow,
    RealNVPImage,
    RealNVPVector,
    VectorFlow,
    coupling_layer,
    image_flow,
    multi_scale,
    network_of,
    patch_flow,
)
from tfp_realnvp.networks import (
    Conditioner,
    ConvResNet,
    DenseResNet,
    ShallowConv,
    VisionTransformer,
)
from tfp_realnvp.pixels import bits_per_dim, dequantize, to_uint8
from tfp_realnvp.saving.onnx import export_onnx
from tfp_realnvp.saving.saved_model import export_saved_model
from tfp_realnvp.saving.weights_file import save_weights
from tfp_realnvp.training.checkpoint import TrainingCheckpoint
from tfp_realnvp.training.diagnosis import NonFiniteLossError
from tfp_realnvp.training.flow_model import FlowModel
from tfp_realnvp.training.fused_adam import FusedAdam
from tfp_realnvp.training.learning_rate import LearningRateBudget
from tfp_realnvp.training.muon import Muon

__all__ = [
    "PAPER_CONFIGURATIONS",
    "ActNorm",
    "Additive",
    "Affine",
    "AffineCoupling",
    "BatchNormalization",
    "BijectorCoupling",
    "ChannelMask",
    "CheckerboardMask",
    "ClassMixture",
    "ClusterMixture",
    "Clusters",
    "ConditionalBase",
    "Conditioner",
    "ConvResNet",
    "Coupling",
    "DenseResNet",
    "FactorOut",
    "FlowBijector",
    "FlowChain",
    "FlowModel",
    "FusedAdam",
    "ImageFlow",
    "InvertibleConv1x1",
    "LearningRateBudget",
    "LogisticMixture",
    "Mask",
    "Muon",
    "NonFiniteLossError",
    "Pass",
    "PixelLogit",
    "RationalQuadraticSpline",
    "RealNVPImage",
    "RealNVPVector",
    "ShallowConv",
    "SigmoidAffine",
    "SpatialMask",
    "Squeeze",
    "Standardization",
    "TrainingCheckpoint",
    "Transformer",
    "VariationalDequantization",
    "VectorFlow",
    "VisionTransformer",
    "bits_per_dim",
    "call_options",
    "class_log_joint",
    "class_log_probs",
    "condition",
    "coupling_layer",
    "dequantize",
    "export_onnx",
    "export_saved_model",
    "image_flow",
    "log_prob",
    "log_prob_map",
    "multi_scale",
    "network_of",
    "patch_flow",
    "real_nvp_coupling",
    "save_weights",
    "to_uint8",
]

# Modules to import at first use, so that `import tfp_realnvp` is fast. (`log_prob` has already
# imported `evaluation`.)
_MODULES = ("data", "evaluation", "latents", "outliers", "plots")
# Classes to import at first use, because they need the extra `tables`.
_ESTIMATORS = ("FlowDensity", "FlowOutlierDetector", "FlowRegressor")
if TYPE_CHECKING:
    from tfp_realnvp.tables import FlowDensity as FlowDensity
    from tfp_realnvp.tables import FlowOutlierDetector as FlowOutlierDetector
    from tfp_realnvp.tables import FlowRegressor as FlowRegressor


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _ESTIMATORS:
        return getattr(importlib.import_module(f"{__name__}.tables"), name)
    if name == "__version__":
        return importlib.metadata.version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES, *_ESTIMATORS, "__version__"])
