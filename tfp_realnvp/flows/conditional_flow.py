"""Composes layers into a flow of images or vectors, with an embedding of the condition."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfp_realnvp.bijectors.flow_chain import ConditionalBijector, FlowChain
from tfp_realnvp.flows.coupling_layer import ConditionShape
from tfp_realnvp.internal import validation
from tfp_realnvp.networks import ConditionEmbedding


def conditional_flow(
    flow_class: type[FlowChain],
    layers: Callable[[ConditionShape], Sequence[tfb.Bijector]],
    first: tfb.Bijector | None,
    *,
    dtype: Any,
    name: str,
    conditional_event_shape: Sequence[int | None] | None = None,
    num_classes: int | None = None,
    condition_dropout: float | None = None,
    embedding_size: int | None = None,
    recompute: bool = False,
    validate_args: bool = False,
    **attributes: Any,
) -> Any:
    """Composes layers into a flow. If there is a condition, all layers share its embedding.

    `first` is the bijector next to the data, without a condition. `attributes` are arguments of
    `flow_class`; all other arguments are as in `image_flow`.
    """
    dtype = validation.float_dtype(dtype, name)
    is_vector = conditional_event_shape is not None and np.size(conditional_event_shape) == 1
    is_embedded = num_classes is not None or is_vector
    when = "with a condition of labels or vectors"
    validation.only(embedding_size, "embedding_size", is_embedded, when, name)
    if conditional_event_shape is None and num_classes is None:
        validation.only(condition_dropout, "condition_dropout", False, "with a condition", name)
        with tf.name_scope(name):
            bijectors = layers(None)
    else:
        # Conditions and embeddings are small, so full precision costs little.
        embedding = ConditionEmbedding(
            conditional_event_shape,
            num_classes=num_classes,
            size=embedding_size,
            dropout=condition_dropout,
            dtype=dtype.name,
            name=f"{name}_condition",
        )
        with tf.name_scope(name):
            chain = FlowChain(layers(tuple(embedding.embedded_shape)), dtype=dtype)
            bijectors = [ConditionalBijector(chain, embedding, dtype=dtype, name=name)]
    bijectors = [*([] if first is None else [first]), *bijectors]
    options = {"recompute": recompute, "validate_args": validate_args, **attributes}
    return flow_class(bijectors, dtype=dtype, name=name, **options)


def check_options(function: Callable[..., Any], options: Iterable[str], caller: str) -> None:
    """Raises `TypeError` for options that neither the function nor `conditional_flow` accepts."""
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    names[-1:] = inspect.getfullargspec(conditional_flow).kwonlyargs  # instead of `options`
    validation.known_options(options, list(dict.fromkeys(names)), caller)
