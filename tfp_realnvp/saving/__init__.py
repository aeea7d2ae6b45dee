"""Keras configurations, presets and SavedModels of flows."""

from tfp_realnvp.saving.keras_config import deserialize_distribution, serialize_distribution
from tfp_realnvp.saving.onnx import export_onnx
from tfp_realnvp.saving.presets import from_preset, save_to_preset
from tfp_realnvp.saving.saved_model import export_saved_model

__all__ = [
    "deserialize_distribution",
    "export_onnx",
    "export_saved_model",
    "from_preset",
    "save_to_preset",
    "serialize_distribution",
]
