"""A flow that embeds its condition once, for all of its networks."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfp_realnvp.bijectors.flow_bijector import Pass
from tfp_realnvp.bijectors.flow_chain import FlowChain
from tfp_realnvp.internal import validation
from tfp_realnvp.networks import ConditionEmbedding


class ConditionalBijector(FlowChain):
    r"""Embeds `conditional_input`, and passes the embedding to all networks of a bijector.

    ```
    forward(x, c) = bijector.forward(x, embedding(c))
    ```

    Leading shapes broadcast. A condition image must have the height and width of the data.
    """

    def __init__(
        self,
        bijector: tfb.Bijector,
        embedding: ConditionEmbedding,
        *,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "conditional_bijector",
    ) -> None:
        """Constructs the bijector from a flow and the layer that embeds its condition."""
        parameters = dict(locals())
        if not embedding.built:
            # Build the embedding last, so that the networks start with the same random weights as
            # in a flow without a condition.
            embedding.build()
        self.bijector, self.embedding = bijector, embedding
        self._track_layers(embedding)
        options = {"dtype": dtype, "validate_args": validate_args, "name": name}
        super().__init__([bijector], parameters=parameters, **options)
        expected = f"{name}: expected a network whose call has an argument `conditional_input`"
        validation.require(self.accepts_conditional_input, expected, bijector)
        expected = f"{name}: expected a condition of vectors or labels for a bijector on vectors"
        fits = embedding.spec.event_ndims <= self.event_ndims
        validation.require(fits, expected, embedding.spec.description)
        self._condition_spec = embedding.spec

    def _of_parts(self, value: tf.Tensor, p: Pass) -> Pass:
        embedded = self.embedding(p.condition)
        if self.embedding.spec.event_ndims == 3:
            sides, expected = embedded.shape[-3:-1], value.shape[-3:-1]
            if not sides.is_compatible_with(expected):
                raise ValueError(
                    f"{self.name}: expected a condition of the height and width of the images, "
                    f"{expected}, got {sides}; `tf.image.resize(condition, {list(expected)})` has "
                    "them."
                )
        p = p.but(condition=embedded)
        if p.guidance is None:
            return p
        missing = tf.broadcast_to(self.embedding.no_condition, tf.shape(embedded))
        missing = tf.ensure_shape(missing, embedded.shape)
        return p.but(no_condition=missing, recompute=False)
