"""Defines the compared contenders and their operations."""

from __future__ import annotations

import pathlib
from typing import Any, NamedTuple

__all__ = ["COMPARISONS", "MEMORY_COMPARISONS", "ROWS", "WHATS", "Comparison", "parse_row"]

WHATS = ("train", "log_prob", "sample")

_BF16 = {"policy": "mixed_bfloat16"}
_JIT = {"jit_compile": True}
# A first step on a single image separates the memory of the graph from the memory of activations.
# The number of feature maps is the same at all scales: if it doubled with each scale, the gradients
# of 96 million weights would take more memory than the activations.
_MEMORY = {"first_batch_size": 1, "equal_widths": True}
_RECOMPUTE = {"recompute": True}
_TWICE = {"num_couplings": 6}

# Maps the names of rows to a contender and its options.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours-f32": ("ours", {}),
    "ours-bf16": ("ours", _BF16),
    "ours-f32-jit": ("ours", _JIT),
    "ours-bf16-jit": ("ours", _BF16 | _JIT),
    "torch-f32": ("pytorch", {}),
    "torch-bf16": ("pytorch", {"autocast": True}),
    "torch-f32-compiled": ("pytorch", {"compile": True}),
    "torch-bf16-compiled": ("pytorch", {"autocast": True, "compile": True}),
    "plain-tfp": ("plain_tfp", {}),
    "glow": ("glow", {}),
    "memory-plain": ("ours", _MEMORY),
    "memory-saving": ("ours", _MEMORY | _RECOMPUTE),
    "memory-plain-2x": ("ours", _MEMORY | _TWICE),
    "memory-saving-2x": ("ours", _MEMORY | _RECOMPUTE | _TWICE),
}


class Comparison(NamedTuple):
    """Two rows, and the operations to compare at small sizes and at the paper's sizes."""

    first: str
    second: str
    whats: tuple[str, ...] = WHATS
    whats_of_large: tuple[str, ...] = ()


COMPARISONS = (
    Comparison("ours-f32", "torch-f32", WHATS, ("train",)),
    Comparison("ours-f32", "torch-f32-compiled", ("log_prob", "sample")),
    Comparison("ours-f32", "plain-tfp", ("train", "log_prob")),
    Comparison("ours-f32", "glow"),
    Comparison("ours-bf16", "torch-bf16", ("train",)),
    Comparison("ours-bf16", "torch-bf16-compiled", WHATS, ("train",)),
    Comparison("ours-bf16", "ours-f32", ("train",)),
    Comparison("ours-f32-jit", "ours-f32", ("train", "log_prob")),
    Comparison("ours-bf16-jit", "ours-bf16", ("train", "log_prob")),
)

# Rows that run only at 64×64.
MEMORY_COMPARISONS = (
    Comparison("memory-saving", "memory-plain", (), ("train",)),
    Comparison("memory-saving-2x", "memory-saving", (), ("train",)),
    Comparison("memory-plain-2x", "memory-plain", (), ("train",)),
)


def parse_row(text: str) -> dict[str, Any]:
    """Returns the `contender`, `options` and `checkout` of a row, for a worker.

    Args:
      text: a key of `ROWS`. For a row of this package, `ROW@FOLDER` measures the package in the
        checkout at this folder.

    Raises:
      ValueError: if there is no such row, or no package in the checkout.
    """
    name, _, folder = text.partition("@")
    if name not in ROWS:
        raise ValueError(f"expected a row of {', '.join(ROWS)}, got {name!r}")
    contender, options = ROWS[name]
    if folder and contender != "ours":
        raise ValueError(f"expected a row of this package before '@', got {name!r}")
    if folder and not pathlib.Path(folder, "tfp_realnvp", "__init__.py").exists():
        raise ValueError(f"expected a folder with tfp_realnvp after '@', got {folder!r}")
    checkout = str(pathlib.Path(folder).resolve()) if folder else None
    return {"contender": contender, "options": options, "checkout": checkout}
