"""Brings keyword arguments to the parts of a distribution that take them."""

from __future__ import annotations

from typing import Any

import tensorflow_probability as tfp

from tfp_realnvp.bijectors import EmbeddedCondition, nested
from tfp_realnvp.distributions.conditional_distribution import ConditionalDistribution
from tfp_realnvp.internal import private_api
from tfp_realnvp.networks import ConditionEmbedding

__all__ = ["find_embedding", "route", "takes_condition"]

tfd = tfp.distributions


def route(distribution: tfd.Distribution, **options: Any) -> dict[str, Any]:
    """Returns the keyword arguments of `log_prob` and `sample` that route `options` to the parts.

    #### Example

    >>> import tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> base = tfd.Sample(tfd.Normal(0., 1.), [4, 4, 1])
    >>> flow = tfd.TransformedDistribution(base, tfr.RealNVPImage((4, 4, 1), num_classes=10))
    >>> route(flow, training=True, conditional_input=3)
    {'bijector_kwargs': {'training': True, 'conditional_input': 3}}

    Args:
      distribution: any distribution.
      **options: `training` goes to each `FlowBijector`, `conditional_input` to each one that takes
        it and to each `ConditionalDistribution`.
    """
    if isinstance(distribution, private_api.TransformedDistribution):
        routed = {
            "distribution_kwargs": route(distribution.distribution, **options),
            "bijector_kwargs": nested.call_options(distribution.bijector, **options),
        }
        return {name: kwargs for name, kwargs in routed.items() if kwargs}
    if isinstance(distribution, ConditionalDistribution):
        return {name: value for name, value in options.items() if name == "conditional_input"}
    if isinstance(distribution, private_api.Independent):
        return route(distribution.distribution, **options)
    return {}


def takes_condition(distribution: tfd.Distribution) -> bool:
    """Returns whether a part of the distribution takes `conditional_input`."""
    return bool(route(distribution, conditional_input=0))


def find_embedding(distribution: tfd.Distribution) -> ConditionEmbedding | None:
    """Returns the embedding of the condition that a distribution declares, `None` without one.

    Raises:
      ValueError: if parts of the distribution declare different conditions.
    """
    found = [p.embedding for p in distribution.submodules if isinstance(p, EmbeddedCondition)]
    declared = {(each.conditional_event_shape, each.num_classes) for each in found}
    if len(declared) > 1:
        raise ValueError(f"expected one declared condition in {distribution}, got {declared}.")
    return found[0] if found else None
