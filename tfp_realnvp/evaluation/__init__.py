"""Log likelihood, bits per dimension and classification of a dataset; the paper's results."""

from tfp_realnvp.evaluation.classifier import (
    Classification,
    classification,
    expected_calibration_error,
)
from tfp_realnvp.evaluation.density import (
    Evaluation,
    LogLikelihood,
    bits_per_dim,
    log_likelihood,
)
from tfp_realnvp.evaluation.tables import PAPER_RESULTS, PaperResult, as_json, as_markdown

__all__ = [
    "PAPER_RESULTS",
    "Classification",
    "Evaluation",
    "LogLikelihood",
    "PaperResult",
    "as_json",
    "as_markdown",
    "bits_per_dim",
    "classification",
    "expected_calibration_error",
    "log_likelihood",
]
