"""What all couplings share: a mask, a network, and the network's condition."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.bijectors.flow_bijector import FlowBijector, Pass
from tfp_realnvp.bijectors.masks import CheckerboardMask, Mask, SpatialMask
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.batch_dims import flatten_batch


class NetworkCoupling(FlowBijector):
    """The base of couplings: a mask, and a network that sees the kept half and the condition."""

    _condition_spec: _NetworkCondition | None = None

    def __init__(
        self,
        mask: Mask,
        network: Callable[..., Any],
        layers: Sequence[keras.layers.Layer],
        conditional_event_shape: Sequence[int | None] | None,
        event_ndims: int,
        parameters: dict[str, Any],
    ) -> None:
        """Constructs the base from arguments of `Coupling`, and the layers with variables."""
        name = parameters.get("name", type(self).__name__)
        expected = (
            f"{name}: expected a mask, for example `tfr.CheckerboardMask()`, or an instance of a "
            "subclass of `tfr.Mask` with the methods split, restrict, merge and changed_channels"
        )
        validation.require(isinstance(mask, Mask), expected, mask, TypeError)
        if event_ndims == 1 and isinstance(mask, (CheckerboardMask, SpatialMask)):
            raise ValueError(f"{name}: expected a ChannelMask for vectors, got {mask}.")
        self.mask = mask
        self.network: Any = network
        self._track_layers(*layers)
        self._network_arguments = set(_arguments(network))
        self.accepts_conditional_input = takes_condition(network)
        self._condition_spec = _declared_condition(network, conditional_event_shape, name)
        super().__init__(parameters=parameters)

    @property
    def variables_set_in_training(self) -> tuple[tf.Variable, ...]:
        """The network's non-trainable variables: moving statistics and random seeds."""
        return tuple(v for v in self._layer_variables if not v.trainable)

    @property
    def conditional_event_shape(self) -> tf.TensorShape | None:
        """Shape of one `conditional_input`; `None` if the shape is not declared."""
        spec = self._condition_spec
        return None if spec is None else tf.TensorShape(spec.event_shape)

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape[-1] is None:
            raise ValueError(f"{self.name}: expected a known number of channels, got {shape}.")
        self.mask.changed_channels(shape[-1])

    def _output(self, kept: tf.Tensor, changed: tf.Tensor, p: Pass, *others: Any) -> Any:
        """Calls the network with the kept half, or if it is empty, with the condition or ones."""
        spec, condition, ndims = self._condition_spec, p.condition, self.event_ndims
        if spec is not None:
            condition = spec.of_network(condition)
            # Move the condition to the positions of the network's input.
            condition = self.mask.arrange(condition) if spec.event_ndims == 3 else condition
        if kept.shape[-1] != 0:
            inputs = flatten_batch(kept, ndims)
        elif spec is not None and spec.event_ndims == ndims:
            inputs = condition
        else:
            inputs = flatten_batch(tf.ones_like(changed[..., :1]), ndims)
        options = {"training": p.training, "statistics": p.statistics}
        if self.accepts_conditional_input and condition is not None:
            options["conditional_input"] = condition
        options = {name: options[name] for name in options if name in self._network_arguments}
        return self.network(inputs, *others, **options)


def takes_condition(network: Callable[..., tf.Tensor]) -> bool:
    """Returns whether a network takes a condition; `conditional_event_shape=None` means no."""
    has_argument = "conditional_input" in _arguments(network)
    return has_argument and getattr(network, "conditional_event_shape", ()) is not None


def _arguments(network: Callable[..., tf.Tensor]) -> Mapping[str, Any]:
    function = network.call if isinstance(network, keras.layers.Layer) else network
    return inspect.signature(function).parameters


class _NetworkCondition(ConditionSpec):
    """Declares a network's condition, and squeezes condition images with too few channels."""

    def _fits(self, shape: tf.TensorShape) -> bool:
        if self.event_ndims == 3 and shape.rank == 3 and shape[-1]:
            *sides, channels = shape
            while channels < self.event_shape[-1]:
                channels *= 4
                sides = [None if side is None else side // 2 for side in sides]
            shape = tf.TensorShape([*sides, channels])
        return super()._fits(shape)

    def of_network(self, condition: tf.Tensor) -> tf.Tensor:
        """Squeezes the condition to the network's channels; flattens its leading shape to [B]."""
        condition = flatten_batch(condition, self.event_ndims)
        while self.event_ndims == 3 and condition.shape[-1] < self.event_shape[-1]:
            condition = tf.nn.space_to_depth(condition, 2)
        return condition


def _declared_condition(
    network: Callable[..., tf.Tensor], shape: Sequence[int | None] | None, name: str
) -> _NetworkCondition | None:
    declared = getattr(network, "conditional_event_shape", None)
    if (shape := declared if shape is None else shape) is None:
        return None
    expected = (
        f"{name}: expected a network with an argument `conditional_input`, for "
        f"conditional_event_shape={shape}"
    )
    validation.require(takes_condition(network), expected, network)
    spec = _NetworkCondition(shape)
    if declared is not None:
        expected = f"{name}: expected the conditional_event_shape of the network, {tuple(declared)}"
        fits = tf.TensorShape(spec.event_shape).is_compatible_with(declared)
        validation.require(fits, expected, spec.event_shape)
    return spec
