"""Finds what a model's distribution takes, and brings keyword arguments to its parts."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors import PixelLogit, parts
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.distributions.class_mixture import ClassMixture
from tfp_realnvp.distributions.conditional_base import ConditionalBase
from tfp_realnvp.internal import private_api, validation
from tfp_realnvp.internal.kept import kept

__all__ = [
    "as_conditions",
    "checked_conditions",
    "distribution_of",
    "find_condition_spec",
    "find_num_values",
    "route",
    "takes_condition",
]

tfd = tfp.distributions


def distribution_of(model: Any, caller: str) -> tfd.Distribution:
    """Returns the distribution of a `FlowModel`, or the distribution itself.

    Args:
      model: a `FlowModel` or a `tfd.Distribution`.
      caller: name that begins the error message.

    Raises:
      TypeError: if `model` is neither.
    """
    is_model = isinstance(model, keras.Model)
    distribution = getattr(model, "distribution", None) if is_model else model
    is_distribution = isinstance(distribution, tfd.Distribution)
    expected = (
        "a FlowModel or a tfd.Distribution, as tfd.TransformedDistribution(base, bijector) is"
    )
    validation.require(is_distribution, f"{caller}: expected {expected}", model, TypeError)
    return distribution


def route(distribution: tfd.Distribution, **options: Any) -> dict[str, Any]:
    """Returns the keyword arguments of `log_prob` and `sample` that route `options` to the parts.

    Args:
      distribution: any distribution.
      **options: `training` goes to each `FlowBijector`; `conditional_input` goes to each
        `FlowBijector` that takes it and to each `ConditionalBase` and `ClassMixture`.
    """
    if isinstance(distribution, private_api.TransformedDistribution):
        routed = {
            "distribution_kwargs": route(distribution.distribution, **options),
            "bijector_kwargs": parts.call_options(distribution.bijector, **options),
        }
        return {name: kwargs for name, kwargs in routed.items() if kwargs}
    if isinstance(distribution, (ConditionalBase, ClassMixture)):
        return {name: value for name, value in options.items() if name == "conditional_input"}
    if isinstance(distribution, private_api.Independent):
        return route(distribution.distribution, **options)
    return {}


def takes_condition(distribution: tfd.Distribution) -> bool:
    """Returns whether a part of the distribution takes `conditional_input`."""
    return bool(route(distribution, conditional_input=0))


@kept
def find_condition_spec(distribution: tfd.Distribution) -> ConditionSpec | None:
    """Returns the condition that a distribution declares, `None` without one.

    Raises:
      ValueError: if parts of the distribution declare different conditions.
    """
    if isinstance(distribution, ClassMixture):
        return distribution.condition_spec
    if isinstance(distribution, private_api.Independent):
        return find_condition_spec(distribution.distribution)
    if not isinstance(distribution, private_api.TransformedDistribution):
        return None
    of_base = find_condition_spec(distribution.distribution)
    specs = {of_base, parts.condition_spec(distribution.bijector)} - {None}
    if len(specs) > 1:
        raise ValueError(f"expected one declared condition in {distribution}, got {specs}.")
    return specs.pop() if specs else None


@kept
def find_num_values(distribution: tfd.Distribution) -> int | None:
    """Returns the number of gray levels of a distribution's `PixelLogit`; `None` without one."""
    logits = [part for part in distribution.submodules if isinstance(part, PixelLogit)]
    return logits[0].num_values if logits else None


def checked_conditions(distribution: tfd.Distribution, value: Any, caller: str) -> Any:
    """Returns the conditions of a batch of events, [B, ...], checked.

    Args:
      distribution: any distribution.
      value: conditions, as in `ConditionSpec.of_events`, or `None`.
      caller: name that begins the error message.

    Returns:
      An array, or a tensor if `value` is one; `None` if the distribution takes no condition, or
      `value` is `None` and the condition may be missing.

    Raises:
      ValueError: if conditions are missing, or are not as declared.
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
    """Returns `checked_conditions` as a tensor: int32 labels, or floats of the same dtype."""
    value, spec = checked_conditions(distribution, value, caller), find_condition_spec(distribution)
    if value is None or spec is not None:
        return (
            value if value is None else tf.cast(value, spec.tensor_spec(distribution.dtype).dtype)
        )
    value = tf.convert_to_tensor(value)
    return tf.cast(value, distribution.dtype) if value.dtype.is_floating else value
