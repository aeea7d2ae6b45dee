"""Makes the variables of Keras layers visible to TFP and `tf.Module`."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import private_api


class LayerVariables(Sequence):
    """A live view of layers' variables as `tf.Variable`s.

    `tf.Module` collects `tf.Variable`s from attributes and sequences, but a Keras 3 variable only
    wraps a `tf.Variable`. Keras sets the `trainable` flag of the Keras variable, but TFP and
    gradient tapes read the flag of the `tf.Variable`, so the view links the two flags.
    """

    def __init__(self, layers: Sequence[keras.layers.Layer]) -> None:
        self._layers = layers
        self._linked()

    def __len__(self) -> int:
        return sum(len(layer.variables) for layer in self._layers)

    def __getitem__(self, index: Any) -> tf.Variable:
        return self._linked()[index]

    def __iter__(self) -> Iterator[tf.Variable]:
        return iter(self._linked())

    def _linked(self) -> list[tf.Variable]:
        # A layer can create variables at any time, so list them anew.
        return [link_trainable(variable) for layer in self._layers for variable in layer.variables]


def is_built(layer: keras.layers.Layer) -> bool:
    """Returns whether the variables of a layer exist, including those of nested layers."""
    # Keras sets `built` on a layer without a `build` of its own, even if nested layers lack theirs.
    parts = private_api.flatten_layers(layer)
    return layer.built and all(part.built or not has_build(part) for part in parts)


def has_build(layer: keras.layers.Layer) -> bool:
    """Returns whether the class of a layer overrides `build`, which creates the variables."""
    return type(layer).build is not keras.layers.Layer.build


def link_trainable(variable: keras.Variable) -> tf.Variable:
    """Returns the `tf.Variable`, and makes it follow the Keras variable's `trainable` flag."""
    if not isinstance(variable, _LinkedVariable):
        # Keras has no callback for changes of the flag, so a subclass overrides the property.
        is_plain = type(variable) is keras.Variable
        bases: Any = (_LinkedVariable, type(variable))
        variable.__class__ = _LinkedVariable if is_plain else type("LinkedVariable", bases, {})
        variable.trainable = variable.trainable
    return variable.value


class _LinkedVariable(keras.Variable):
    """A Keras variable that sets the `trainable` flag of its `tf.Variable`."""

    @property
    def trainable(self) -> bool:
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        super(_LinkedVariable, type(self)).trainable.fset(self, value)
        private_api.set_trainable(self.value, self.trainable)
