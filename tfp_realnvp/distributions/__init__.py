"""Conditional distributions: fixed conditions, classifiers, base distributions and clusters."""

from tfp_realnvp.distributions.classification import class_log_joint, class_log_probs
from tfp_realnvp.distributions.clusters import ClusterMixture, Clusters
from tfp_realnvp.distributions.condition import ConditionedDistribution, condition
from tfp_realnvp.distributions.conditional_bases import ClassMixture, ConditionalBase
from tfp_realnvp.distributions.variational_dequantization import VariationalDequantization
