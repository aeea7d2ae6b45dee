"""Couplings of equal configuration in one graph, traced once."""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.ops import resource_variable_ops

from tfp_realnvp.groups import assign, read
from tfp_realnvp.masks import Mask
from tfp_realnvp.networks import Conditioner
from tfp_realnvp.networks.weight_norm_conv import kernels_are_fixed

__all__ = ["apply_recomputed", "can_be_traced"]

# Functions of a graph, by the configuration of the couplings that they stand for.
_functions: weakref.WeakKeyDictionary[tf.Graph, dict[Any, _CouplingFunction]]
_functions = weakref.WeakKeyDictionary()


class Coupling(Protocol):
    """What is asked of a coupling here."""

    mask: Mask
    network: Conditioner
    scale: tf.Variable | None

    def pure_call(
        self, image: tf.Tensor, scale: Any, *, inverse: bool, **options: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the image, changed, and the log det."""


def can_be_traced(network: Callable[..., tf.Tensor]) -> bool:
    """Returns whether `apply_recomputed` may be asked for a coupling of it, here and now."""
    return (
        isinstance(network, Conditioner)
        and network.built
        and tf.inside_function()
        and not tf.distribute.in_cross_replica_context()
        and tf.distribute.get_strategy().num_replicas_in_sync == 1
        and not kernels_are_fixed()
    )


def apply_recomputed(
    coupling: Coupling, image: tf.Tensor, **options: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `coupling.pure_call`, of which the gradient keeps nothing but the image.

    The backward pass runs the coupling a second time and differentiates that. Both are functions of
    the image and of the coupling's variables, and stay functions in the graph: all couplings of
    equal configuration call the same ones, so that what is traced, optimised and kept in memory
    grows with the number of different couplings, not with that of all.

    Args:
      coupling: one of whose network `can_be_traced`.
      image: [..., H, W, C].
      **options: `inverse`, and those of the network's call.

    Returns:
      The image, and the log det. Moving statistics of the network move, once.
    """
    function = _function_of(coupling, options)
    network = coupling.network
    trainable = [variable.value for variable in network.trainable_variables]
    if coupling.scale is not None:
        trainable.append(coupling.scale)
    moving = [variable.value for variable in network.non_trainable_variables]
    for variable in trainable:
        resource_variable_ops.variable_accessed(variable)
    with record.stop_recording():
        values, state = read(trainable), read(moving)
        *outputs, after = function.apply(image, values, state)
        if options.get("training"):
            assign(moving, after)
    # The variables are sources as they are: `tf.custom_gradient` would add operations for each.
    sources = [image, *(variable.handle for variable in trainable)]
    record.record_operation(
        "Coupling",
        outputs,
        sources,
        lambda *upstream: function.gradient(image, values, state, upstream),
    )
    return tuple(outputs)


def _function_of(coupling: Coupling, options: dict[str, bool]) -> _CouplingFunction:
    functions = _functions.setdefault(tf.compat.v1.get_default_graph(), {})
    network = coupling.network
    config = {key: value for key, value in network.get_config().items() if key != "name"}
    flags = [coupling.scale is None, *(v.trainable for v in network.variables)]
    key = json.dumps([config, options, flags], sort_keys=True, default=repr)
    key = type(coupling), type(network), coupling.mask, key
    if key not in functions:
        functions[key] = _CouplingFunction(coupling, options)
    return functions[key]


class _CouplingFunction:
    """A coupling as a pure function of its input and variables, and the gradient of that."""

    def __init__(self, coupling: Coupling, options: dict[str, bool]) -> None:
        self._coupling = coupling
        self._options = options
        # A function that is inlined would be traced once, but optimised and kept at each call.
        function = functools.partial(
            tf.function, autograph=False, experimental_attributes={"_noinline": True}
        )
        self.apply = function(self._apply)
        self.gradient = function(self._gradient)

    def _apply(
        self, image: tf.Tensor, trainable: Sequence[tf.Tensor], state: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        network = self._coupling.network
        number = len(network.trainable_variables)
        mapping = [
            *zip(network.trainable_variables, trainable[:number], strict=True),
            *zip(network.non_trainable_variables, state, strict=True),
        ]
        scale = trainable[-1] if len(trainable) > number else None
        with keras.StatelessScope(mapping) as scope:
            outputs = self._coupling.pure_call(image, scale, **self._options)
        return *outputs, [scope.get_current_value(v) for v in network.non_trainable_variables]

    def _gradient(
        self,
        image: tf.Tensor,
        trainable: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        upstream: Sequence[tf.Tensor],
    ) -> list[tf.Tensor]:
        sources = [image, *trainable]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            *outputs, _ = self._apply(image, trainable, state)
        return tape.gradient(
            outputs,
            sources,
            output_gradients=list(upstream),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
