"""What a worker is to build: a contender, its size and its options."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from benchmarks.sizes import SIZES, Size

__all__ = ["Spec", "num_cores"]


def num_cores() -> int:
    """Returns the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclasses.dataclass(frozen=True)
class Spec:
    """A contender, its size and its options.

    Attributes:
      contender: see `benchmarks.contenders.contender_class`.
      size: the architecture and the batch.
      options: keyword arguments of the contender.
      threads: of its framework.
    """

    contender: str
    size: Size
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    threads: int = dataclasses.field(default_factory=num_cores)

    def to_json(self) -> dict[str, Any]:
        """Returns what `from_json` takes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Spec:
        """Returns the spec of `to_json`; `size` may also be a key of `SIZES`."""
        size = fields["size"]
        size = SIZES[size] if isinstance(size, str) else Size(**size)
        return cls(**{**fields, "size": size})
