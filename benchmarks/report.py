"""Results as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

from benchmarks.sizes import SIZES, multiply_adds

__all__ = ["markdown", "sentence", "table"]

# So many cores kept busy by others are worth a remark.
BUSY = 0.2


def markdown(results: dict[str, Any]) -> str:
    """Returns the report of a run.

    Args:
      results: `machine`, and `entries`: of each comparison its `size`, `what`, `first`, `second`,
        and either a `measurement` (see `benchmarks.comparison.Measurement`) or a `reason` why
        there is none. Maybe `quality`: what `benchmarks.quality` says of each contender; and
        `precision` and `pipeline`, what the programs of these names say.
    """
    parts = [_machine(results["machine"])]
    disturbed = sum((entry.get("busy_cores") or 0.0) > BUSY for entry in results["entries"])
    if disturbed:
        parts.append(
            f"**Others used the machine at the start of {disturbed} of {len(results['entries'])} "
            "comparisons: these figures are not to be relied on.**"
        )
    for size in dict.fromkeys(entry["size"] for entry in results["entries"]):
        entries = [entry for entry in results["entries"] if entry["size"] == size]
        parts.append(_heading(size))
        parts.append(_speed(entries))
        parts.append(_contenders(entries))
        if any(_is_memory(entry) for entry in entries):
            parts.append(_memory(entries))
    if results.get("quality"):
        parts.append(_quality(results["quality"]))
    if results.get("precision"):
        parts.append(_precision(results["precision"]))
    if results.get("pipeline"):
        parts.append(_pipeline(results["pipeline"]))
    return "\n\n".join(parts) + "\n"


def sentence(entry: dict[str, Any]) -> str:
    """Returns the outcome of one comparison in a line."""
    heading = f"{entry['size']}, {entry['what']}: {entry['first']} against {entry['second']}"
    if entry.get("reason"):
        return f"{heading}: {entry['reason']}"
    measured = entry["measurement"]
    first, second = measured["first"], measured["second"]
    busy = entry.get("busy_cores") or 0.0
    remarks = f" (others kept {busy:.1f} cores busy)" if busy > BUSY else ""
    for name, side in ((entry["first"], first), (entry["second"], second)):
        if not side["is_finite"]:
            remarks += f" (results of {name} are not finite)"
    return (
        f"{heading}: {measured['ratio']:.2f}× ({min(measured['ratios']):.2f} to "
        f"{max(measured['ratios']):.2f}), {first['images_per_second']:.1f} and "
        f"{second['images_per_second']:.1f} images/s{remarks}"
    )


def table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """Returns a Markdown table.

    #### Example

    >>> print(table(['a', 'b'], [[1, 2]]))
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _machine(machine: dict[str, Any]) -> str:
    machine = dict(machine)
    rates = machine.pop("matrix_gflops")
    rows = [[key.replace("_", " "), value] for key, value in machine.items()]
    rows += [[f"matrix product, {dtype}", f"{rate:.0f} GFLOP/s"] for dtype, rate in rates.items()]
    return "### Machine\n\n" + table(["", ""], rows)


def _heading(name: str) -> str:
    size = SIZES[name]
    height, width, channels = size.image_shape
    return (
        f"### {name}: {height}×{width}×{channels}, {size.num_scales} scales, {size.num_blocks} "
        f"blocks, {size.num_filters} maps, batch {size.batch_size}, "
        f"{multiply_adds(size) / 1e9:.2f} GMAC an image"
    )


def _speed(entries: list[dict[str, Any]]) -> str:
    rows = []
    for entry in entries:
        name = [entry["what"], entry["first"], entry["second"]]
        goal = entry.get("at_least")
        goal = "" if goal is None else f"≥ {goal:g}"
        if entry.get("reason"):
            rows.append([*name, "–", "–", entry["reason"], goal])
            continue
        measured = entry["measurement"]
        ratios = measured["ratios"]
        for i, side in enumerate(("first", "second"), start=1):
            if not measured[side]["is_finite"]:
                name[i] += " (results not finite)"
        rows.append(
            [
                *name,
                f"{measured['first']['images_per_second']:.1f}",
                f"{measured['second']['images_per_second']:.1f}",
                f"**{measured['ratio']:.2f}** ({min(ratios):.2f}–{max(ratios):.2f})",
                goal,
            ]
        )
    header = ["what", "first", "second", "first, images/s", "second, images/s", "ratio", "bar"]
    return table(header, rows)


def _contenders(entries: list[dict[str, Any]]) -> str:
    """Returns what is measured of a process by itself: the median over its comparisons."""
    rows = []
    for (what, name), sides in _sides(entries).items():

        def median(key: str, sides: list[dict[str, Any]] = sides) -> float:
            return statistics.median(side[key] for side in sides)

        rows.append(
            [
                what,
                name,
                f"{sides[0]['num_parameters']:,}",
                f"{median('images_per_second'):.1f}",
                f"{median('build_seconds'):.1f}",
                f"{median('first_step_seconds'):.1f}",
                f"{median('built_mb'):.0f}",
                f"{median('peak_mb'):.0f}",
                f"{median('peak_mb') - median('built_mb'):.0f}",
            ]
        )
    header = [
        "what",
        "contender",
        "parameters",
        "images/s",
        "build, s",
        "to the end of the first step, s",
        "memory after building, MB",
        "peak memory, MB",
        "peak − building, MB",
    ]
    return table(header, rows)


def _memory(entries: list[dict[str, Any]]) -> str:
    """Returns peaks of activations as multiples of each other."""
    rows = []
    for entry in filter(_is_memory, entries):
        if entry.get("reason"):
            rows.append([entry["first"], entry["second"], entry["reason"], "–", "–"])
            continue
        sides = [entry["measurement"]["first"], entry["measurement"]["second"]]
        over_building = [side["peak_mb"] - side["built_mb"] for side in sides]
        over_graph = [side["peak_mb"] - side["traced_mb"] for side in sides]
        rows.append(
            [
                entry["first"],
                entry["second"],
                f"{over_building[0] / over_building[1]:.2f}",
                f"{over_graph[0] / over_graph[1]:.2f}",
                f"{1 / entry['measurement']['ratio']:.2f}",
            ]
        )
    header = [
        "first",
        "second",
        "peak − building, ratio",
        "peak − (building, graph, a step on one image), ratio",
        "step time, ratio",
    ]
    return table(header, rows)


def _quality(outcomes: list[dict[str, Any]]) -> str:
    rows = []
    for outcome in outcomes:
        if outcome.get("reason"):
            rows.append([outcome["contender"], outcome["reason"], *["–"] * 5])
            continue
        errors = "–"
        if "largest_latent_error" in outcome:
            errors = f"{outcome['largest_latent_error']:.1e}"
        rows.append(
            [
                outcome["contender"],
                f"{outcome['bits_per_dim']:.3f}",
                outcome["steps"],
                f"{outcome.get('trained_seconds', math.nan):.0f}",
                f"{outcome.get('num_parameters', 0):,}",
                f"{outcome['finite_samples']} of {outcome['samples']}",
                errors,
            ]
        )
    header = [
        "contender",
        "test bits/dim",
        "steps",
        "time, s",
        "parameters",
        "finite samples",
        "largest error of a sample's latents",
    ]
    return "### Bits/dim after a given time\n\n" + table(header, rows)


def _precision(outcome: dict[str, Any]) -> str:
    if outcome.get("reason"):
        return f"Equal steps in two precisions: {outcome['reason']}."
    bits = outcome["bits_per_dim"]
    return (
        f"After {outcome['steps']} equal steps, size {outcome['size']}, test bits/dim: "
        f"{bits['float32']:.3f} in float32, {bits['mixed_bfloat16']:.3f} in mixed_bfloat16."
    )


def _pipeline(outcome: dict[str, Any]) -> str:
    if outcome.get("reason"):
        return f"Input pipeline: {outcome['reason']}."
    return (
        f"Input pipeline alone, {outcome['dataset']}: "
        f"{outcome['pipeline_images_per_second']:,.0f} images/s, {outcome['ratio']:,.0f} times "
        f"those of training at size {outcome['size']}."
    )


def _is_memory(entry: dict[str, Any]) -> bool:
    return all(entry[side].startswith("memory-") for side in ("first", "second"))


def _sides(entries: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    sides = {}
    for entry in entries:
        if entry.get("reason"):
            continue
        whats = entry["what"].split(" / ")
        for what, which in ((whats[0], "first"), (whats[-1], "second")):
            key = (what, entry[which])
            sides.setdefault(key, []).append(entry["measurement"][which])
    return sides
