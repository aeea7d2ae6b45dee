"""Writes results as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.sizes import SIZES, multiply_adds

__all__ = ["markdown", "sentence"]


def markdown(results: dict[str, Any]) -> str:
    """Returns the report of a run.

    Args:
      results: `machine`, and `entries`: each with `size`, `what`, the two `rows`, and the result of
        `benchmarks.comparison.compare` or a `reason` why there is none; optionally `quality`, the
        outcomes of `benchmarks.quality`.
    """
    parts = [_machine(results["machine"])]
    for size in dict.fromkeys(entry["size"] for entry in results["entries"]):
        entries = [entry for entry in results["entries"] if entry["size"] == size]
        parts += [_heading(size), _speed(entries)]
        measured = [entry for entry in entries if "reason" not in entry]
        if measured:
            parts.append(_contenders(measured))
        memory = [entry for entry in measured if all(map(_is_memory_row, entry["rows"]))]
        if memory:
            parts.append(_memory(memory))
    if results.get("quality"):
        parts.append(_quality(results["quality"]))
    return "\n\n".join(parts) + "\n"


def sentence(entry: dict[str, Any]) -> str:
    """Returns a line with the outcome of one comparison."""
    first, second, outcome, *speeds = _speed_cells(entry)
    of_each = f", {' and '.join(speeds)} images/s" if "reason" not in entry else ""
    return f"{entry['size']}, {entry['what']}: {first} against {second}: {outcome}{of_each}"


def _table(header: str, rows: Iterable[Iterable[Any]]) -> str:
    columns = header.split(" | ")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _machine(machine: dict[str, Any]) -> str:
    rows = [[key.replace("_", " "), machine[key]] for key in machine if key != "matrix_gflops"]
    for dtype, rate in machine["matrix_gflops"].items():
        rows.append([f"matrix product, {dtype}", f"{rate:.0f} GFLOP/s"])
    return "### Machine\n\n" + _table("machine | value", rows)


def _heading(name: str) -> str:
    size = SIZES[name]
    height, width, channels = size.image_shape
    return (
        f"### {name}: {height}×{width}×{channels}, {size.num_scales} scales, {size.num_blocks} "
        f"blocks, {size.num_filters} maps, batch {size.batch_size}, "
        f"{multiply_adds(size) / 1e9:.2f} GMAC an image"
    )


def _speed(entries: list[dict[str, Any]]) -> str:
    rows = [[entry["what"], *_speed_cells(entry)] for entry in entries]
    return _table("what | first | second | ratio | first, images/s | second, images/s", rows)


def _speed_cells(entry: dict[str, Any]) -> list[str]:
    if "reason" in entry:
        return [*entry["rows"], entry["reason"], "–", "–"]
    names = [
        row if side["is_finite"] else f"{row} (results not finite)"
        for row, side in zip(entry["rows"], entry["sides"], strict=True)
    ]
    ratios = entry["ratios"]
    ratio = f"**{entry['ratio']:.2f}** ({min(ratios):.2f}–{max(ratios):.2f})"
    return [*names, ratio, *(f"{side['images_per_second']:.1f}" for side in entry["sides"])]


def _contenders(entries: list[dict[str, Any]]) -> str:
    """Returns a table of contenders, with medians over the comparisons of each."""
    by_row: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for entry in entries:
        for row, side in zip(entry["rows"], entry["sides"], strict=True):
            by_row.setdefault((entry["what"], row), []).append(side)
    rows = []
    for (what, row), sides in by_row.items():
        side = {key: statistics.median(side[key] for side in sides) for key in sides[0]}
        # Only for memory rows: other rows make their first step on a full batch.
        activations = side["peak_mb"] - side["first_step_mb"]
        rows.append(
            [
                what,
                row,
                f"{side['num_parameters']:,.0f}",
                f"{side['images_per_second']:.1f}",
                f"{side['first_step_seconds']:.1f}",
                f"{side['built_mb']:.0f}",
                f"{side['peak_mb'] - side['built_mb']:.0f}",
                f"{activations:.0f}" if _is_memory_row(row) else "–",
            ]
        )
    return _table(
        "what | contender | parameters | images/s | first step, s | built, MB | "
        "peak − built, MB | activations, MB",
        rows,
    )


def _memory(entries: list[dict[str, Any]]) -> str:
    """Returns a table of ratios of memory and time between two rows `memory-...`."""
    rows = []
    for entry in entries:
        memory = []
        for start in ("built_mb", "first_step_mb"):
            first, second = (side["peak_mb"] - side[start] for side in entry["sides"])
            memory.append(f"{first / second:.2f}")
        rows.append([*entry["rows"], *memory, f"{1 / entry['ratio']:.2f}"])
    return _table("first | second | peak − built, ratio | activations, ratio | time, ratio", rows)


def _is_memory_row(row: str) -> bool:
    return row.startswith("memory-")


def _quality(outcomes: list[dict[str, Any]]) -> str:
    formats = {
        "contender": "",
        "bits_per_dim": ".3f",
        "train_bits_per_dim": ".3f",
        "steps": ",",
        "num_parameters": ",",
        "samples": ",",
        "finite_samples": ",",
        "largest_latent_error": ".1e",
    }
    rows = []
    for outcome in outcomes:
        if "reason" in outcome:
            rows.append([outcome["contender"], outcome["reason"], *["–"] * (len(formats) - 2)])
        else:
            rows.append(
                [format(outcome[k], f) if k in outcome else "–" for k, f in formats.items()]
            )
    header = " | ".join(formats).replace("_", " ")
    return "### Bits/dim after a given time\n\n" + _table(header, rows)
