"""Keras configurations, presets, SavedModels and ONNX models of flows."""
