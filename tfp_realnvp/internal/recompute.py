"""Gradients that recompute activations instead of storing them."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import private_api, replicas


def recompute_layers(
    function: Callable[..., tuple[tf.Tensor, tf.Tensor]],
    inputs: Sequence[tf.Tensor],
    layers: Sequence[keras.layers.Layer],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Like `recompute`, for a function of two results that calls and may update Keras layers.

    Each variable is updated once, and the first layer gets the losses that the function adds.
    """
    weights = [v for layer in layers for v in layer.trainable_variables]
    state = [v for layer in layers for v in layer.non_trainable_variables]
    state_before = [tf.convert_to_tensor(variable.value) for variable in state]

    def pure(*flat: tf.Tensor) -> tuple[Sequence[tf.Tensor], list[tf.Tensor]]:
        # Within this scope, layers read these values, and updates stay inside the scope.
        values = *flat[len(inputs) :], *state_before
        variables = list(zip([*weights, *state], values, strict=True))
        with keras.StatelessScope(variables, collect_losses=True) as scope:
            outputs = function(*flat[: len(inputs)])
        return (*outputs, *scope.losses), [scope.get_current_value(v) for v in state]

    flat = [*inputs, *(variable.value for variable in weights)]
    (value, log_det, *losses), state_after = recompute(pure, flat)
    layers[0].add_loss(losses)
    for variable, before, after in zip(state, state_before, state_after, strict=True):
        if after is not before:
            replicas.assign(variable, after)
    return value, log_det


def recompute(
    function: Callable[..., tuple[Sequence[tf.Tensor], Any]], inputs: Sequence[tf.Tensor]
) -> tuple[Sequence[tf.Tensor], Any]:
    r"""Returns `function(*inputs)`. The gradient stores the inputs, not the activations.

    The gradient calls the function again under a new tape, so memory holds the activations of only
    one such function at a time. The gradient consists of ordinary operations, so second derivatives
    are correct. A tape outside of a `tf.function` gets the same gradients, but stores the
    activations; so does a tape within a `tf.autodiff.ForwardAccumulator` of the inputs.

    Args:
      function: returns a sequence of floating tensors, and an auxiliary value without a gradient.
        The function must write no variables, and get trainable variables through `inputs` only.
      inputs: floating tensors. In the recomputation, operations on the first input wait for the
        upstream gradient; operations on other inputs can run earlier.
    """
    inputs = [tf.convert_to_tensor(value) for value in inputs]
    if private_api.pack_tangents(inputs).tangents:
        # Forward mode needs the tangents of all activations.
        return function(*inputs)
    with private_api.stop_recording():
        outputs, auxiliary = function(*inputs)

    def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
        copies = [_after(inputs[0], upstream[0]), *map(tf.identity, inputs[1:])]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(copies)
            recomputed, _ = function(*copies)
        return tape.gradient(recomputed, copies, upstream, unconnected_gradients="zero")

    private_api.record_operation("Recompute", list(outputs), inputs, gradient)
    return outputs, auxiliary


def _after(value: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
    """Returns `value`, computed only after `upstream`.

    Without this order, a graph could run the recomputation too early, or merge it with the first
    call. XLA ignores control dependencies, so we add a zero that compilers do not simplify.
    """
    element = tf.reshape(upstream, [-1])[0]
    return value + tf.cast(tf.minimum(tf.abs(element), 0), value.dtype)
