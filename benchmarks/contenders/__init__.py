"""Defines the contenders, one implementation per file, all with the same operations."""

import importlib

from benchmarks.contenders.contender import Contender

_CLASSES = {"ours": "Ours", "plain_tfp": "PlainTFP", "glow": "Glow", "pytorch": "PyTorch"}


def contender_class(module: str) -> type[Contender]:
    """Imports a contender and its framework; a process imports only one framework."""
    return getattr(importlib.import_module(f"benchmarks.contenders.{module}"), _CLASSES[module])
