"""Finds the condition of a distribution, and routes keyword arguments to its parts."""

from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_realnvp.bijectors import PixelLogit
from tfp_realnvp.bijectors.flow_chain import call_options, condition_spec_of
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.distributions.conditional_bases import ConditionalBase, ConditionalDistribution
from tfp_realnvp.internal import private_api, validation
from tfp_realnvp.internal.memoize import memoized


def distribution_of(model: Any, caller: str) -> tfd.Distribution:
    """Returns a `FlowModel`'s distribution, or `model` itself if it is a distribution."""
    distribution = getattr(model, "distribution", None) if isinstance(model, keras.Model) else model
    expected = (
        f"{caller}: expected a FlowModel or a tfd.Distribution, such as "
        "tfd.TransformedDistribution(base, bijector)"
    )
    is_distribution = isinstance(distribution, tfd.Distribution)
    validation.require(is_distribution, expected, model, TypeError)
    return distribution


def find_part(distribution: tfd.Distribution, kind: type) -> Any:
    """Returns the first instance of `kind` among a distribution and its submodules, or `None`."""
    modules = (distribution, *distribution.submodules)
    return next((module for module in modules if isinstance(module, kind)), None)


def route(distribution: tfd.Distribution, **options: Any) -> dict[str, Any]:
    """Returns keyword arguments for `log_prob` and `sample` that pass `options` to all parts.

    Each `FlowBijector` gets `training`. Parts that depend on a condition get `conditional_input`:
    bijectors, `ConditionalBase`, `ClassMixture`, and `ClusterMixture` with classes.
    """
    if isinstance(distribution, private_api.TransformedDistribution):
        routed = {
            "distribution_kwargs": route(distribution.distribution, **options),
            "bijector_kwargs": call_options(distribution.bijector, **options),
        }
        return {name: kwargs for name, kwargs in routed.items() if kwargs}
    if isinstance(distribution, ConditionalDistribution):
        is_taken = distribution.accepts_conditional_input
        return {k: v for k, v in options.items() if k == "conditional_input" and is_taken}
    if isinstance(distribution, private_api.Independent):
        return route(distribution.distribution, **options)
    return {}


def takes_condition(distribution: tfd.Distribution) -> bool:
    """Returns whether a part of the distribution takes `conditional_input`."""
    return bool(route(distribution, conditional_input=0))


@memoized
def find_condition_spec(distribution: tfd.Distribution) -> ConditionSpec | None:
    """Returns the declared condition or `None`; raises `ValueError` if declarations differ."""
    if isinstance(distribution, ConditionalDistribution):
        return distribution.condition_spec
    if isinstance(distribution, private_api.Independent):
        return find_condition_spec(distribution.distribution)
    if not isinstance(distribution, private_api.TransformedDistribution):
        return None
    of_base = find_condition_spec(distribution.distribution)
    specs = {of_base, condition_spec_of(distribution.bijector)} - {None}
    if len(specs) > 1:
        raise ValueError(f"expected {distribution} to declare one condition, got {specs}.")
    spec = specs.pop() if specs else None
    dropout = None if spec is None else spec.dropout
    if dropout is not None and find_part(distribution.distribution, ConditionalBase) is not None:
        raise ValueError(
            f"{distribution.name}: expected a flow without condition_dropout, because the function "
            f"of a ConditionalBase needs a condition, got condition_dropout={dropout}."
        )
    return spec


@memoized
def find_num_values(distribution: tfd.Distribution) -> int | None:
    """Returns the number of gray levels of a distribution's `PixelLogit`, or `None`."""
    logit = find_part(distribution, PixelLogit)
    return None if logit is None else logit.num_values


def checked_conditions(distribution: tfd.Distribution, value: Any, caller: str) -> Any:
    """Checks the conditions of a batch of events and returns them, [B, ...], as array or tensor.

    Returns `None` without a condition; raises `ValueError` if conditions are invalid.
    """
    if not takes_condition(distribution):
        return None
    spec = find_condition_spec(distribution)
    if value is None:
        if spec is None or spec.may_be_missing:
            return None
        raise ValueError(
            f"{caller}: expected events and conditions, {spec.description}, for example "
            "`(images, labels)` or `fit(images, labels)`, got events only."
        )
    return value if spec is None else spec.of_events(value, caller)


def as_conditions(distribution: tfd.Distribution, value: Any, caller: str) -> tf.Tensor | None:
    """Returns `checked_conditions` as a tensor: int32 labels, or the distribution's float dtype."""
    value = checked_conditions(distribution, value, caller)
    if value is None:
        return None
    value, spec = tf.convert_to_tensor(value), find_condition_spec(distribution)
    if spec is not None:
        return tf.cast(value, spec.tensor_spec(distribution.dtype).dtype)
    return tf.cast(value, distribution.dtype) if value.dtype.is_floating else value
