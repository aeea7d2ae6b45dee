"""All private APIs of TensorFlow, TFP and Keras that this package uses, each with its reason.

Nothing else imports from `tensorflow.python`, `tensorflow_probability.python` or `keras.src`.
`tests/internal/test_private_api.py` says which one is missing when a new release moves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

# Whether a gradient tape is active, or watches a tensor, has no public answer: the cache needs it.
# `record_operation` gives a tape the gradient of a part that is computed again. The public
# `tf.custom_gradient` would keep every graph that it is used in for the life of the process.
from tensorflow.python.eager.record import (
    could_possibly_record,
    record_operation,
    should_record_backprop,
    stop_recording,
)

# `tfb.Invert(b)` is not a `tfb.Invert` unless `b` is a composite tensor, which a bijector with
# networks is not: the constructor returns one of these bases. `isinstance` needs them.
from tensorflow_probability.python.bijectors.chain import _Chain as Chain
from tensorflow_probability.python.bijectors.invert import _Invert as Invert
from tensorflow_probability.python.distributions.independent import _Independent as Independent
from tensorflow_probability.python.distributions.transformed_distribution import (
    _TransformedDistribution as TransformedDistribution,
)

# The caches of bijectors have no public base class. `tfb.FFJORD` derives from these as well.
from tensorflow_probability.python.internal.cache_util import (
    BijectorCacheWithGreedyAttrs,
    EphemeralDict,
)

__all__ = [
    "BijectorCacheWithGreedyAttrs",
    "Chain",
    "EphemeralDict",
    "Independent",
    "Invert",
    "TransformedDistribution",
    "assign_on_replica",
    "could_possibly_record",
    "flatten_layers",
    "record_operation",
    "set_trainable",
    "should_record_backprop",
    "stop_recording",
]


def set_trainable(variable: tf.Variable, trainable: bool) -> None:
    """Sets the `trainable` flag of a variable, which TensorFlow fixes at construction."""
    variable._trainable = trainable


def flatten_layers(layer: keras.layers.Layer) -> Sequence[keras.layers.Layer]:
    """Returns a layer and all layers within it; the public `layers` is that of models only."""
    return list(layer._flatten_layers())


def assign_on_replica(variable: tf.Variable, value: Any) -> None:
    """Assigns to this replica's copy of a variable, without the reduction that `assign` makes."""
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
