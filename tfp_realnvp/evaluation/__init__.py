"""Evaluates log likelihood, bits per dimension and classification on a dataset."""

from tfp_realnvp.evaluation.summaries import (
    Classification,
    Evaluation,
    bits_per_dim,
    classification,
    log_likelihood,
)

__all__ = ["Classification", "Evaluation", "bits_per_dim", "classification", "log_likelihood"]
