"""The variables of Keras layers as `tf.Variable`s, which TFP and `tf.Module` find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import private_api

__all__ = ["LayerVariables"]


class LayerVariables(Sequence):
    """A live view of a layer's variables as `tf.Variable`s.

    `tf.Module` collects `tf.Variable`s from attributes and looks into sequences, but a Keras 3
    variable only wraps one.

    #### Example

    >>> import keras
    >>> from tfp_realnvp.internal.layer_variables import LayerVariables
    >>> layer = keras.layers.Dense(2)
    >>> variables = LayerVariables(layer)
    >>> layer.build([None, 3])
    >>> [variable.shape.as_list() for variable in variables]
    [[3, 2], [2]]
    """

    def __init__(self, layer: keras.layers.Layer) -> None:
        self._layer = layer

    def __len__(self) -> int:
        return len(self._layer.variables)

    def __getitem__(self, index: Any) -> tf.Variable:
        return _native(self._layer.variables[index])

    def __iter__(self) -> Iterator[tf.Variable]:
        return map(_native, self._layer.variables)


def _native(variable: keras.Variable) -> tf.Variable:
    # `layer.trainable = False` sets a flag of Keras only; TFP and gradient tapes read the native
    # one.
    private_api.set_trainable(variable.value, variable.trainable)
    return variable.value
