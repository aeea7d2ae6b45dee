"""Which contenders are compared with which, at what."""

from __future__ import annotations

import dataclasses
from typing import Any

__all__ = ["COMPARISONS", "MEMORY_COMPARISONS", "ROWS", "WHATS", "Comparison"]

WHATS = ("train", "log_prob", "sample")

_RECOMPUTE = {"recompute": True}
_DOUBLE_DEPTH = {"num_couplings": 6}
# The first step's single image tells memory for the graph from memory for activations. As many maps
# at all scales: where they double, the gradients of 96 million weights outweigh the activations.
_MEMORY = {"first_batch_size": 1, "filter_growth": 1.0}

# By name: the contender and its options.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours-f32": ("ours", {}),
    "ours-f32-jit": ("ours", {"jit_compile": True}),
    "ours-bf16": ("ours", {"policy": "mixed_bfloat16"}),
    "ours-bf16-jit": ("ours", {"policy": "mixed_bfloat16", "jit_compile": True}),
    "plain-tfp": ("plain_tfp", {}),
    "glow": ("glow", {}),
    "torch-f32": ("pytorch", {}),
    "torch-f32-compiled": ("pytorch", {"compile": "networks"}),
    "torch-bf16": ("pytorch", {"autocast": True}),
    "torch-bf16-compiled": ("pytorch", {"autocast": True, "compile": "networks"}),
    "memory-plain": ("ours", _MEMORY),
    "memory-saving": ("ours", {**_MEMORY, **_RECOMPUTE}),
    "memory-plain-2x": ("ours", {**_MEMORY, **_DOUBLE_DEPTH}),
    "memory-saving-2x": ("ours", {**_MEMORY, **_RECOMPUTE, **_DOUBLE_DEPTH}),
}


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A pair of rows.

    Attributes:
      first: the row whose speed is given as a multiple of
      second: the other row's.
      whats: what both are measured at; a pair if the first is to do another thing.
      whats_of_large: the same for the larger sizes, which take minutes each.
      at_least: the ratio that the project asks of itself at the small size, by what.
    """

    first: str
    second: str
    whats: tuple[str | tuple[str, str], ...] = WHATS
    whats_of_large: tuple[str, ...] = ()
    at_least: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def uses_bfloat16(self) -> bool:
        """Whether one of the rows computes in bfloat16."""
        return "bf16" in self.first or "bf16" in self.second


_BARS_F32 = {"train": 1.0, "log_prob": 1.0, "sample": 1.0}
_BARS_BF16 = {"train": 1.0, "log_prob": 1.3, "sample": 1.3}
_IN_TURNS = {"whats": (("sample", "log_prob"),), "at_least": {"sample / log_prob": 0.9}}

COMPARISONS: tuple[Comparison, ...] = (
    Comparison("ours-f32", "torch-f32", whats_of_large=("train",), at_least=_BARS_F32),
    Comparison("ours-f32", "torch-f32-compiled", ("log_prob", "sample"), at_least=_BARS_F32),
    Comparison("ours-f32", "plain-tfp", ("train", "log_prob"), at_least={"train": 1.8}),
    Comparison("ours-f32", "glow"),
    Comparison("ours-bf16", "torch-bf16", ("train",), at_least=_BARS_BF16),
    Comparison("ours-bf16", "torch-bf16-compiled", whats_of_large=("train",), at_least=_BARS_BF16),
    Comparison("ours-bf16", "ours-f32", ("train",)),
    Comparison("ours-f32-jit", "ours-f32", ("train", "log_prob")),
    Comparison("ours-bf16-jit", "ours-bf16", ("train", "log_prob")),
    Comparison("ours-f32", "ours-f32", **_IN_TURNS),
    Comparison("ours-bf16", "ours-bf16", **_IN_TURNS),
)

# At 64×64 only: training by re-computation against plain training, also with twice the couplings.
MEMORY_COMPARISONS: tuple[Comparison, ...] = (
    Comparison("memory-saving", "memory-plain", ("train",)),
    Comparison("memory-saving-2x", "memory-saving", ("train",)),
    Comparison("memory-plain-2x", "memory-plain", ("train",)),
)
