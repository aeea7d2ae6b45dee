"""Couplings of equal configuration as one function, traced once."""

from __future__ import annotations

import functools
import itertools
import json
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from tfp_realnvp.bijectors.recomputation import in_order, recording
from tfp_realnvp.bijectors.recomputed_run import Pass
from tfp_realnvp.groups import unfolded
from tfp_realnvp.masks import CheckerboardMask, Mask
from tfp_realnvp.networks import Conditioner
from tfp_realnvp.networks.weight_norm_conv import kernels_are_fixed

__all__ = ["CouplingFunctions", "can_be_traced", "recomputed_step"]

# By the configuration of the couplings that they stand for, and for as long as one of these lives.
_functions: weakref.WeakValueDictionary[Any, _CouplingFunction] = weakref.WeakValueDictionary()


class CouplingFunctions:
    """What a coupling holds of functions that it shares with others, by configuration."""

    def __init__(self) -> None:
        self.by_key: dict[Any, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the coupling starts with none: what was traced cannot be copied.
        return CouplingFunctions, ()


class Coupling(Protocol):
    """What is asked of a coupling here."""

    mask: Mask
    network: Conditioner
    scale: tf.Variable | None
    accepts_parity: bool
    functions: CouplingFunctions

    def pure_call(
        self, image: tf.Tensor, scale: Any, *, inverse: bool, parity: Any, **options: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the image, changed, and the log det."""

    def join(self, kept_of: tf.Tensor, changed_of: tf.Tensor, parity: Any) -> tf.Tensor:
        """Returns the image with what it keeps of one and what it changes of another."""


def can_be_traced(network: Callable[..., tf.Tensor]) -> bool:
    """Returns whether `recomputed_step` may be asked for a coupling of it, here and now."""
    return (
        isinstance(network, Conditioner)
        and network.built
        and not tf.config.functions_run_eagerly()
        and not tf.distribute.in_cross_replica_context()
        and tf.distribute.get_strategy().num_replicas_in_sync == 1
        and not kernels_are_fixed()
    )


def recomputed_step(
    coupling: Coupling, image: tf.Tensor, **options: bool
) -> tuple[tf.Tensor, tf.Tensor, Pass]:
    """Returns `coupling.pure_call` and the way back, which keeps nothing of it.

    The backward pass runs the coupling a second time and differentiates that. Both are functions of
    the image, the parity of the mask and the coupling's variables, which all couplings of equal
    configuration call: what is traced, optimised and kept in memory grows with the number of
    different couplings, not with that of all. Outside of a graph they are compiled all the same.

    Args:
      coupling: one of whose network `can_be_traced`.
      image: [..., H, W, C].
      **options: `inverse`, and those of the network's call.

    Returns:
      The image, the log det and the way back. Moving statistics of the network move, once.
    """
    # A network that takes `training` does less without it, if it knows the parity.
    takes_parity = coupling.accepts_parity and options.get("training", True)
    parity = unfolded(coupling.mask.parity) if takes_parity else None
    function = _function_of(coupling, image, takes_parity, options)
    variables = _variables(coupling)
    trainable = list(itertools.compress(variables, function.is_trainable))
    handles = [variable.handle for variable in variables]
    result, log_det, values = function.apply(image, parity, handles)
    shape = image.shape
    result.set_shape(shape)
    log_det.set_shape(shape[:-3])

    def gradient(
        by_result: tf.Tensor,
        by_log_det: tf.Tensor,
        image: tf.Tensor,
        result: tf.Tensor | None,
    ) -> tuple[tf.Tensor, list[tf.Tensor], tf.Tensor]:
        upstream = by_result, by_log_det
        kept_of = image if result is None else result
        image, by_image, *by_variables = function.gradient(kept_of, image, parity, values, upstream)
        for tensor in (image, by_image):
            tensor.set_shape(shape)
        return by_image, by_variables, image

    def again(image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        followed = map(_as_it_was, variables, values)
        *outputs, _ = function.of_values(image, parity, list(followed))
        return tuple(outputs)

    return result, log_det, Pass(gradient, again, trainable)


def _as_it_was(variable: tf.Variable, value: tf.Tensor) -> tf.Tensor:
    # Of that value, with the gradient of the variable.
    now = tf.convert_to_tensor(variable)
    return value + (now - tf.stop_gradient(now)) if value.dtype.is_floating else value


def _variables(coupling: Coupling) -> list[tf.Variable]:
    """Returns those of the network, and last the coupling's own."""
    own = [] if coupling.scale is None else [coupling.scale]
    return [*(variable.value for variable in coupling.network.variables), *own]


def _function_of(
    coupling: Coupling, image: tf.Tensor, takes_parity: bool, options: dict[str, bool]
) -> _CouplingFunction:
    network = coupling.network
    # The call says it, to the network of a checkerboard.
    is_told = takes_parity and isinstance(coupling.mask, CheckerboardMask)
    left_out = ("name", "checkerboard_parity") if is_told else ("name",)
    config = {key: value for key, value in network.get_config().items() if key not in left_out}
    shape = [None] * (image.shape.rank - 3) + image.shape[-3:].as_list()
    flags = [coupling.scale is None, *(v.trainable for v in network.variables)]
    described = [config, shape, image.dtype.name, options, flags]
    key = json.dumps(described, sort_keys=True, default=repr)
    mask = type(coupling.mask) if takes_parity else coupling.mask
    key = type(coupling), type(network), mask, key
    function = coupling.functions.by_key.get(key) or _functions.get(key)
    if function is None:
        spec = tf.TensorSpec(shape, image.dtype)
        function = _functions[key] = _CouplingFunction(coupling, spec, takes_parity, options)
    coupling.functions.by_key[key] = function
    return function


class _CouplingFunction:
    """A coupling as a function of all that it uses, and the gradient of that.

    Attributes:
      is_trainable: of each variable, those of the network and the coupling's own.
    """

    def __init__(
        self, coupling: Coupling, image: tf.TensorSpec, takes_parity: bool, options: dict[str, bool]
    ) -> None:
        self._coupling = coupling
        self._options = options
        self._image = image
        self._parity = tf.TensorSpec([], tf.int32) if takes_parity else None
        variables = _variables(coupling)
        self._specs = [tf.TensorSpec(variable.shape, variable.dtype) for variable in variables]
        of_network = [variable.trainable for variable in coupling.network.variables]
        self.is_trainable = of_network + [True] * (len(variables) - len(of_network))

    @functools.cached_property
    def apply(self) -> Callable[..., Any]:
        """From image, parity and handles to image, log det and the variables as they were."""
        handles = [tf.TensorSpec([], tf.resource) for _ in self._specs]
        return _traced(self._apply, self._image, self._parity, handles)

    @functools.cached_property
    def gradient(self) -> Callable[..., Any]:
        """From what has either half of the image, parity, variables and gradients.

        To the image, and the gradients by it and by variables.
        """
        image = self._image
        upstream = image, tf.TensorSpec(image.shape[:-3], image.dtype)
        return _traced(self._gradient, image, image, self._parity, self._specs, upstream)

    def _apply(
        self, image: tf.Tensor, parity: tf.Tensor | None, handles: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        values = []
        for handle, spec in zip(handles, self._specs, strict=True):
            value = tf.raw_ops.ReadVariableOp(resource=handle, dtype=spec.dtype)
            value.set_shape(spec.shape)
            values.append(value)
        *outputs, moved = self.of_values(image, parity, values)
        for handle, before, after in zip(handles, values, moved, strict=False):
            if after is not before:
                tf.raw_ops.AssignVariableOp(resource=handle, value=after)
        return *outputs, values

    def _gradient(
        self,
        kept_of: tf.Tensor,
        changed_of: tf.Tensor,
        parity: tf.Tensor | None,
        values: Sequence[tf.Tensor],
        upstream: Sequence[tf.Tensor],
    ) -> list[tf.Tensor]:
        image = self._coupling.join(kept_of, changed_of, parity)
        sources = [image, *itertools.compress(values, self.is_trainable)]
        with in_order():
            with recording(), tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(sources)
                *outputs, _ = self.of_values(image, parity, values)
            gradients = tape.gradient(
                outputs,
                sources,
                output_gradients=list(upstream),
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
        return [image, *gradients]

    def of_values(
        self,
        image: tf.Tensor,
        parity: tf.Tensor | None,
        values: Sequence[tf.Tensor],
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Returns the image, the log det, and what becomes of the network's variables."""
        variables = self._coupling.network.variables
        scale = values[-1] if len(values) > len(variables) else None
        with keras.StatelessScope(list(zip(variables, values, strict=False))) as scope:
            outputs = self._coupling.pure_call(image, scale, parity=parity, **self._options)
        return *outputs, [scope.get_current_value(variable) for variable in variables]


def _traced(function: Callable[..., Any], *specs: Any) -> Callable[..., Any]:
    # Of no device, so that it can be called on all of them. A function that is inlined would be
    # traced once, but optimised and kept at each call.
    with tf.device(None):
        return tf.function(
            function, autograph=False, experimental_attributes={"_noinline": True}
        ).get_concrete_function(*specs)
