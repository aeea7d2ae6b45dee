"""Finds the condition that a distribution takes."""

from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

from tfp_realnvp.bijectors import FlowBijector, PixelLogit, flow_chain
from tfp_realnvp.bijectors.flow_bijector import surrounding_pass
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.distributions.conditional_bases import ConditionalBase
from tfp_realnvp.internal import memoize, private_api, validation


def distribution_of(model: Any, caller: str) -> tfd.Distribution:
    """Returns a `FlowModel`'s distribution, or `model` itself if it is a distribution."""
    distribution = getattr(model, "distribution", None) if isinstance(model, keras.Model) else model
    check_distribution(distribution, f"{caller}: expected a FlowModel or a tfd.Distribution", model)
    return distribution


def check_distribution(distribution: Any, expected: str, model: Any) -> None:
    """Raises `TypeError` for `model` if it has no distribution, or a joint distribution."""
    advice = f"{expected}, such as `tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), "
    advice += "shape), flow)`"
    validation.require(isinstance(distribution, tfd.Distribution), advice, model, TypeError)
    is_tensor = isinstance(distribution.event_shape, tf.TensorShape)
    advice = f"{expected} whose events are one tensor, not several parts"
    validation.require(is_tensor, advice, distribution.event_shape, TypeError)


def check_context(takes_condition: bool, caller: str, conditional_input: Any = None) -> None:
    """Raises `ValueError` within a `call_options` whose options the graph of `caller` ignores."""
    options = surrounding_pass()
    ignores_condition = takes_condition and conditional_input is None
    ignored = ["training"] * options.training
    ignored += ["conditional_input"] * (ignores_condition and options.condition is not None)
    if ignored:
        raise ValueError(
            f"{caller}: expected a call outside of `tfr.call_options({ignored[0]}=...)`, because "
            "its graph does not depend on the context. Pass conditions as an argument, or call "
            "`log_prob` or `sample` of the distribution."
        )


def find_part(distribution: tf.Module, kind: type) -> Any:
    """Returns the first instance of `kind` among a distribution and its submodules, or `None`."""
    modules = (distribution, *distribution.submodules)
    return next((module for module in modules if isinstance(module, kind)), None)


def _conditional_parts(distribution: tfd.Distribution) -> list[Any]:
    """Returns the bijectors and distributions that declare whether they take a condition.

    Leaves out parts of distributions that change the batch shape, such as
    `tfd.MixtureSameFamily`: there, the conditions of a batch would not meet their events.
    """
    if hasattr(distribution, "accepts_conditional_input"):
        return [distribution]
    if isinstance(distribution, private_api.TransformedDistribution):
        return [*_conditional_parts(distribution.distribution), distribution.bijector]
    inner = [distribution.distribution] if isinstance(distribution, private_api.Independent) else []
    inner = distribution.components if isinstance(distribution, private_api.Mixture) else inner
    return [part for each in inner for part in _conditional_parts(each)]


@memoize.memoized
def takes_condition(distribution: tfd.Distribution) -> bool:
    """Returns whether a part of the distribution takes `conditional_input`."""
    parts = _conditional_parts(distribution)
    is_taken = any(getattr(part, "accepts_conditional_input", False) for part in parts)
    return is_taken or bijector_takes_condition(distribution)


@memoize.memoized
def bijector_takes_condition(distribution: tfd.Distribution) -> bool:
    """Returns whether a bijector of the distribution takes `conditional_input`."""
    parts = _conditional_parts(distribution)
    bijectors = [part for part in parts if isinstance(part, tfb.Bijector)]
    return any(map(flow_chain.accepts_conditional_input, bijectors))


@memoize.memoized
def find_condition_spec(distribution: tfd.Distribution) -> ConditionSpec | None:
    """Returns the declared condition or `None`; raises `ValueError` if declarations differ."""
    parts = _conditional_parts(distribution)
    specs = {
        flow_chain.condition_spec_of(p) if isinstance(p, tfb.Bijector) else p.condition_spec
        for p in parts
    } - {None}
    if len(specs) > 1:
        raise ValueError(f"expected {distribution} to declare one condition, got {specs}.")
    spec = specs.pop() if specs else None
    dropout = None if spec is None else spec.dropout
    applies = not any(isinstance(part, ConditionalBase) for part in parts)
    when = "without a ConditionalBase, whose function needs a condition"
    validation.only(dropout, "condition_dropout", applies, when, distribution.name)
    return spec


def unseen(distribution: tfd.Distribution, value: tf.Tensor) -> tf.Tensor:
    """Returns a value for which no bijector of TFP has cached a result of other call options.

    If no bijector of TFP contains one of this package, returns the same tensor, since our caches
    know the options. A sample and its log density then need a single pass.
    """
    return tf.identity(value) if _has_flows_in_bijectors_of_tfp(distribution) else value


@memoize.memoized
def _has_flows_in_bijectors_of_tfp(distribution: tfd.Distribution) -> bool:
    return any(
        isinstance(part, FlowBijector)
        for bijector in flow_chain.outermost_parts(distribution, tfb.Bijector)
        if not isinstance(bijector, FlowBijector)
        for part in bijector.submodules
    )


@memoize.memoized
def find_num_values(distribution: tf.Module) -> int | None:
    """Returns the number of gray levels of the `PixelLogit` of a distribution or bijector."""
    logit = find_part(distribution, PixelLogit)
    return None if logit is None else logit.num_values


def checked_conditions(distribution: tfd.Distribution, value: Any, caller: str) -> Any:
    """Checks the conditions of a batch and returns them as an array or tensor of shape [B, ...].

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
