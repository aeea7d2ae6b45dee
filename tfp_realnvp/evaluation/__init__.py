"""Bits per dimension and classification of a dataset, and the paper's results."""

from tfp_realnvp.evaluation.classifier import (
    Classification,
    classification,
    expected_calibration_error,
)
from tfp_realnvp.evaluation.density import Evaluation, bits_per_dim
from tfp_realnvp.evaluation.tables import PAPER_RESULTS, PaperResult, as_json, as_markdown

__all__ = [
    "PAPER_RESULTS",
    "Classification",
    "Evaluation",
    "PaperResult",
    "as_json",
    "as_markdown",
    "bits_per_dim",
    "classification",
    "expected_calibration_error",
]
