"""The layers of a whole flow under the embedding of their condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.conditional_bijector import ConditionalBijector
from tfp_realnvp.bijectors.flow_chain import FlowChain
from tfp_realnvp.flows.coupling_layer import ConditionShape
from tfp_realnvp.internal import validation
from tfp_realnvp.networks import ConditionEmbedding

__all__ = ["conditional_layers"]

tfb = tfp.bijectors


def conditional_layers(
    layers: Callable[[ConditionShape], Sequence[tfb.Bijector]],
    *,
    conditional_event_shape: Sequence[int | None] | None,
    num_classes: int | None,
    condition_dropout: float | None,
    embedding_size: int | None,
    event_ndims: int,
    dtype: Any,
    name: str,
) -> list[tfb.Bijector]:
    """Returns `layers(None)`, or with a condition one bijector that embeds it for all layers.

    The arguments are those of `image_flow`.
    """
    dtype = validation.float_dtype(dtype, name)
    if conditional_event_shape is None and num_classes is None:
        validation.only(condition_dropout, "condition_dropout", False, "with a condition", name)
        validation.only(embedding_size, "embedding_size", False, "with a condition", name)
        with tf.name_scope(name):
            return list(layers(None))
    # Conditions and their embedding are small, so that full precision costs little.
    embedding = ConditionEmbedding(
        conditional_event_shape,
        num_classes=num_classes,
        size=embedding_size,
        dropout=condition_dropout,
        dtype=dtype.name,
        name=f"{name}_condition",
    )
    with tf.name_scope(name):
        chain = FlowChain(
            layers(tuple(embedding.embedded_shape)), event_ndims=event_ndims, dtype=dtype
        )
        return [ConditionalBijector(chain, embedding, dtype=dtype, name=name)]
