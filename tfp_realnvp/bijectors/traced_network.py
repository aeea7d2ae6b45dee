"""Networks of equal configuration in one graph, traced once."""

from __future__ import annotations

import functools
import json
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.eager import record

from tfp_realnvp import replicas
from tfp_realnvp.networks import Conditioner
from tfp_realnvp.networks.weight_norm_conv import kernels_are_fixed

__all__ = ["apply_recomputed", "can_be_traced"]

# Functions of a graph, by the configuration of the networks that they stand for.
_functions: weakref.WeakKeyDictionary[tf.Graph, dict[Any, _NetworkFunction]]
_functions = weakref.WeakKeyDictionary()


def can_be_traced(network: Callable[..., tf.Tensor]) -> bool:
    """Returns whether `apply_recomputed` may be asked for this network, here and now."""
    return (
        isinstance(network, Conditioner)
        and network.built
        and tf.inside_function()
        and replicas.num_replicas() == 1
        and not kernels_are_fixed()
    )


def apply_recomputed(network: Conditioner, images: tf.Tensor, **options: bool) -> tf.Tensor:
    """Returns `network(images, **options)`, of which the gradient keeps nothing but the images.

    The backward pass runs the network a second time and differentiates that. Both are functions of
    the images and of the network's variables, and stay functions in the graph: all networks of
    equal configuration call the same ones, so that what is traced, optimised and kept in memory
    grows with the number of different networks, not with that of all.

    Args:
      network: one for which `can_be_traced`.
      images: [B, H, W, C].
      **options: of the network's call.

    Returns:
      [B, H, W, K]. Moving statistics move, once.
    """
    function = _function_of(network, options)
    trainable = [tf.convert_to_tensor(v.value) for v in network.trainable_variables]
    state = [tf.convert_to_tensor(v.value) for v in network.non_trainable_variables]
    with record.stop_recording():
        output, after = function.apply(images, trainable, state)

    @tf.custom_gradient
    def with_gradient(*sources: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
            return function.gradient(images, trainable, state, upstream)

        return tf.identity(output), gradient

    if options.get("training"):
        for variable, value in zip(network.non_trainable_variables, after, strict=True):
            variable.assign(value)
    return with_gradient(images, *trainable)


def _function_of(network: Conditioner, options: dict[str, bool]) -> _NetworkFunction:
    functions = _functions.setdefault(tf.compat.v1.get_default_graph(), {})
    config = {key: value for key, value in network.get_config().items() if key != "name"}
    trainable = [v.trainable for v in network.variables]
    key = type(network), json.dumps([config, options, trainable], sort_keys=True, default=repr)
    if key not in functions:
        functions[key] = _NetworkFunction(network, options)
    return functions[key]


class _NetworkFunction:
    """A network as a pure function of its input and variables, and the gradient of that."""

    def __init__(self, network: Conditioner, options: dict[str, bool]) -> None:
        self._network = network
        self._options = options
        # A function that is inlined would be traced once, but optimised and kept at each call.
        function = functools.partial(
            tf.function, autograph=False, experimental_attributes={"_noinline": True}
        )
        self.apply = function(self._apply)
        self.gradient = function(self._gradient)

    def _apply(
        self, images: tf.Tensor, trainable: Sequence[tf.Tensor], state: Sequence[tf.Tensor]
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        network = self._network
        mapping = [
            *zip(network.trainable_variables, trainable, strict=True),
            *zip(network.non_trainable_variables, state, strict=True),
        ]
        with keras.StatelessScope(mapping) as scope:
            output = network(images, **self._options)
        return output, [scope.get_current_value(v) for v in network.non_trainable_variables]

    def _gradient(
        self,
        images: tf.Tensor,
        trainable: Sequence[tf.Tensor],
        state: Sequence[tf.Tensor],
        upstream: tf.Tensor,
    ) -> list[tf.Tensor]:
        sources = [images, *trainable]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            output, _ = self._apply(images, trainable, state)
        return tape.gradient(
            output,
            sources,
            output_gradients=upstream,
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
