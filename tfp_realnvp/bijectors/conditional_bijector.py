"""A flow whose condition is embedded once, for all of its networks."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.bijectors import parts
from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.bijectors.passes import Pass
from tfp_realnvp.internal import validation
from tfp_realnvp.networks import ConditionEmbedding

__all__ = ["ConditionalBijector"]


class ConditionalBijector(FlowBijector):
    r"""Embeds `conditional_input` and hands the embedding to the networks of a bijector.

    ```
    forward(x, c) = bijector.forward(x, embedding(c))
    ```

    The leading shapes of the events and of the condition broadcast. An image as condition has the
    height and width of the data.
    """

    def __init__(
        self,
        bijector: FlowBijector,
        embedding: ConditionEmbedding,
        *,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "conditional_bijector",
    ) -> None:
        """Constructs the bijector.

        Args:
          bijector: the flow, with at least one network that takes `conditional_input`.
          embedding: the embedding of the condition, which all networks share.
          dtype: `tf.float32` or `tf.float64`.
          validate_args: whether to assert that values are finite.
          name: name of the operations; errors begin with it.

        Raises:
          TypeError: if an argument has a wrong type, or dtypes differ.
          ValueError: if no network of the bijector takes `conditional_input`, the embedding does
            not have the shape that they declare, or the condition is an image for a bijector on
            vectors.
        """
        parameters = dict(locals())
        expected = f"{name}: expected a FlowBijector"
        validation.require(isinstance(bijector, FlowBijector), expected, bijector, TypeError)
        expected = f"{name}: expected a ConditionEmbedding"
        is_embedding = isinstance(embedding, ConditionEmbedding)
        validation.require(is_embedding, expected, embedding, TypeError)
        dtype = validation.float_dtype(dtype, name)
        if bijector.dtype != dtype:
            raise TypeError(
                f"{name}: expected a bijector of dtype {dtype.name}, got {bijector.dtype.name}."
            )
        if not parts.accepts_conditional_input(bijector):
            raise ValueError(
                f"{name}: expected a network whose call has an argument `conditional_input`, got "
                "none in the whole flow."
            )
        if embedding.spec.event_ndims > bijector.event_ndims:
            raise ValueError(
                f"{name}: expected a condition of vectors or labels for a bijector on vectors, got "
                f"{embedding.spec.description}."
            )
        *sides, size = embedding.embedded_shape
        shape, inner = tf.TensorShape([*(None for _ in sides), size]), bijector._condition_spec
        if inner is not None and not inner._fits(shape):
            raise ValueError(
                f"{name}: expected an embedding that the networks take, {inner.description}, got "
                f"one of shape {shape}."
            )
        if not embedding.built:
            # Built after the networks, whose initial weights are those of a flow without a
            # condition.
            embedding.build()
        with tf.name_scope(name):
            self._bijector = bijector
            self._embedding = embedding
            self._condition_spec = embedding.spec
            self._track_layer(embedding)
            super().__init__(
                event_ndims=bijector.event_ndims,
                dtype=dtype,
                is_constant_jacobian=bijector.is_constant_jacobian,
                validate_args=validate_args,
                parameters=parameters,
                name=name,
            )

    @property
    def bijector(self) -> FlowBijector:
        """The flow that gets the embedding."""
        return self._bijector

    @property
    def embedding(self) -> ConditionEmbedding:
        """The embedding of the condition."""
        return self._embedding

    @property
    def layers(self) -> tuple[keras.layers.Layer, ...]:
        """The embedding."""
        return (self._embedding,)

    @property
    def accepts_conditional_input(self) -> bool:
        """Always true."""
        return True

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        return self._bijector._expected_shape(inverse)

    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        p, part = self._of_part(x, p), self._bijector
        x = part._checked_input(x, p, inverse=False)
        return part._checked_results(*part._forward_and_log_det(x, p), p, inverse=False)

    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        p, part = self._of_part(y, p), self._bijector
        y = part._checked_input(y, p, inverse=True)
        return part._checked_results(*part._inverse_and_log_det(y, p), p, inverse=True)

    def _of_part(self, event: tf.Tensor, p: Pass) -> Pass:
        """Returns the pass with the embedded condition."""
        embedded = self._embedding(p.condition)
        if self._embedding.spec.event_ndims == 3:
            sides, expected = embedded.shape[-3:-1], event.shape[-3:-1]
            if not sides.is_compatible_with(expected):
                raise ValueError(
                    f"{self.name}: expected a condition of the height and width of the images, "
                    f"{expected}, got {sides}; `tf.image.resize(condition, {list(expected)})` has "
                    "them."
                )
        return p.but(condition=embedded)

    def _forward_event_shape(self, input_shape: tf.TensorShape) -> tf.TensorShape:
        return self._bijector.forward_event_shape(input_shape)

    def _inverse_event_shape(self, output_shape: tf.TensorShape) -> tf.TensorShape:
        return self._bijector.inverse_event_shape(output_shape)

    def _forward_event_shape_tensor(self, input_shape: tf.Tensor) -> tf.Tensor:
        return self._bijector.forward_event_shape_tensor(input_shape)

    def _inverse_event_shape_tensor(self, output_shape: tf.Tensor) -> tf.Tensor:
        return self._bijector.inverse_event_shape_tensor(output_shape)
