"""Tables of results, with the results of the paper."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from tfp_realnvp.evaluation.classifier import Classification
from tfp_realnvp.evaluation.density import Evaluation

__all__ = ["PAPER_RESULTS", "PaperResult", "as_json", "as_markdown"]


@dataclasses.dataclass(frozen=True)
class PaperResult:
    """A row of table 1 of the paper, in bits/dim; `None` where the table has no entry.

    Attributes:
      real_nvp: Real NVP, on the test or validation images.
      real_nvp_train: Real NVP, on the training images.
      pixel_rnn: PixelRNN.
      conv_draw: Conv DRAW, an upper bound.
      iaf_vae: IAF-VAE, an upper bound.
    """

    real_nvp: float
    real_nvp_train: float | None = None
    pixel_rnn: float | None = None
    conv_draw: float | None = None
    iaf_vae: float | None = None


PAPER_RESULTS: dict[str, PaperResult] = {
    "cifar10": PaperResult(3.49, pixel_rnn=3.00, conv_draw=3.59, iaf_vae=3.28),
    "imagenet32": PaperResult(4.28, 4.26, pixel_rnn=3.86, conv_draw=4.40),
    "imagenet64": PaperResult(3.98, 3.75, pixel_rnn=3.63, conv_draw=4.10),
    "lsun/bedroom": PaperResult(2.72, 2.70),
    "lsun/tower": PaperResult(2.81, 2.78),
    "lsun/church_outdoor": PaperResult(3.08, 2.94),
    "celeb_a": PaperResult(3.02, 2.97),
}


def as_markdown(
    results: Mapping[str, Evaluation],
    dataset: str | None = None,
    classifications: Mapping[str, Classification] | None = None,
) -> str:
    """Returns a table of results, with the paper's results on the same dataset.

    #### Example

    >>> from tfp_realnvp import evaluation
    >>> result = evaluation.Evaluation(3.5, 0.01, 3.45, 0.01, num_images=10_000, num_draws=8)
    >>> print(evaluation.as_markdown({"test": result}, "cifar10"))
    | model | split | images | bits/dim | importance-weighted |
    | --- | --- | ---: | ---: | ---: |
    | this model | test | 10,000 | 3.500 ± 0.010 | 3.450 ± 0.010 (K = 8) |
    | Real NVP (paper) | test | | 3.49 | |
    | PixelRNN | test | | 3.00 | |
    | Conv DRAW | test | | < 3.59 | |
    | IAF-VAE | test | | < 3.28 | |

    Args:
      results: the results, by name of the split.
      dataset: a key of `PAPER_RESULTS`. For other names the table has no rows of the paper.
      classifications: the results of `classification`, by name of the split, for a second table.
    """
    rows = [
        ["model", "split", "images", "bits/dim", "importance-weighted"],
        ["---", "---", "---:", "---:", "---:"],
    ]
    for split, result in results.items():
        tighter = _with_error(result.importance_weighted, result.importance_weighted_error)
        rows.append(
            [
                "this model",
                split,
                f"{result.num_images:,}",
                _with_error(result.bits_per_dim, result.standard_error),
                f"{tighter} (K = {result.num_draws})",
            ]
        )
    paper = PAPER_RESULTS.get(dataset or "")
    if paper is not None:
        for model, split, bits, bound in (
            ("Real NVP (paper)", "train", paper.real_nvp_train, ""),
            ("Real NVP (paper)", "test", paper.real_nvp, ""),
            ("PixelRNN", "test", paper.pixel_rnn, ""),
            ("Conv DRAW", "test", paper.conv_draw, "< "),
            ("IAF-VAE", "test", paper.iaf_vae, "< "),
        ):
            if bits is not None:
                rows.append([model, split, "", f"{bound}{bits:.2f}", ""])
    if classifications:
        rows += [
            [],
            ["split", "images", "accuracy", "expected calibration error", "log loss (nats)"],
            ["---", "---:", "---:", "---:", "---:"],
        ]
        for split, result in classifications.items():
            error, loss = result.expected_calibration_error, result.log_loss
            figures = [f"{100 * result.accuracy:.2f}%", f"{error:.4f}", f"{loss:.4f}"]
            rows.append([split, f"{result.num_images:,}", *figures])
    return "\n".join(
        "|" + "".join(f" {cell} |" if cell else " |" for cell in row) if row else "" for row in rows
    )


def as_json(
    results: Mapping[str, Evaluation],
    dataset: str | None = None,
    classifications: Mapping[str, Classification] | None = None,
) -> dict[str, Any]:
    """Returns the content of `as_markdown` as a dictionary that is serializable as JSON.

    Args:
      results: the results, by name of the split.
      dataset: a key of `PAPER_RESULTS`, or another name.
      classifications: the results of `classification`, by name of the split.

    Returns:
      `{"dataset": …, "results": {split: {…}}, "classification": {split: {…}}, "paper": {…} or
      None}`, with the attributes of `Evaluation`, `Classification` and `PaperResult`. Numbers that
      are not finite become `None`.
    """
    paper = PAPER_RESULTS.get(dataset or "")
    return {
        "dataset": dataset,
        "results": _as_dictionaries(results),
        "classification": _as_dictionaries(classifications or {}),
        "paper": None if paper is None else dataclasses.asdict(paper),
    }


def _as_dictionaries(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        split: {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in dataclasses.asdict(result).items()
        }
        for split, result in results.items()
    }


def _with_error(value: float, error: float) -> str:
    return f"{value:.3f}" if math.isnan(error) else f"{value:.3f} ± {error:.3f}"
