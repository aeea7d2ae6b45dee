"""Conditional distributions: with a fixed condition, as classifiers, and as a base."""

from tfp_realnvp.distributions.condition import ConditionedDistribution, condition
from tfp_realnvp.distributions.conditional_bases import ClassMixture, ConditionalBase
from tfp_realnvp.distributions.routing import (
    as_conditions,
    checked_conditions,
    distribution_of,
    find_condition_spec,
    find_num_values,
    route,
    takes_condition,
)
from tfp_realnvp.distributions.scorer import (
    class_log_joint,
    class_log_prior,
    class_log_probs,
    log_prob_of,
    score,
    scores,
)
from tfp_realnvp.distributions.variational_dequantization import VariationalDequantization

__all__ = [
    "ClassMixture",
    "ConditionalBase",
    "ConditionedDistribution",
    "VariationalDequantization",
    "as_conditions",
    "checked_conditions",
    "class_log_joint",
    "class_log_prior",
    "class_log_probs",
    "condition",
    "distribution_of",
    "find_condition_spec",
    "find_num_values",
    "log_prob_of",
    "route",
    "score",
    "scores",
    "takes_condition",
]
