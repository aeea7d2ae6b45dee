"""Log likelihood, bits per dimension and classification of a dataset."""

from tfp_realnvp.evaluation.classifier import Classification, classification
from tfp_realnvp.evaluation.density import (
    Evaluation,
    LogLikelihood,
    bits_per_dim,
    log_likelihood,
)

__all__ = [
    "Classification",
    "Evaluation",
    "LogLikelihood",
    "bits_per_dim",
    "classification",
    "log_likelihood",
]
