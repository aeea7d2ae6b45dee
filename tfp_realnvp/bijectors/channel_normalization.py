"""The base classes of `ActNorm` and `BatchNormalization`."""

from __future__ import annotations

import abc
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.internal import validation

__all__ = ["ChannelNormalization", "ChannelVariables"]


class ChannelVariables(keras.layers.Layer, abc.ABC):
    """The variables of a normalization. `num_channels` is `None` until the variables are built."""

    num_channels: int | None = None

    def __init__(self, dtype: Any, name: str) -> None:
        super().__init__(dtype=tf.as_dtype(dtype).name, name=name.replace("/", "_"))

    def get_config(self) -> dict[str, Any]:
        """Returns constructor arguments that make an equal layer without variables."""
        return {"dtype": self.variable_dtype, "name": self.name}

    def create(self, num_channels: int) -> None:
        """Creates the variables if they do not exist."""
        if not self.built:
            with tf.init_scope():
                self.build([None, num_channels])

    def build(self, input_shape: Any) -> None:
        """Creates the variables. The initial values give the identity."""
        self.num_channels = input_shape[-1]

    def _add(self, name: str, shape: list[int], value: str = "zeros", **options: Any) -> Any:
        return self.add_weight(
            shape=shape,
            initializer=value,
            autocast=False,
            aggregation="mean",
            name=name,
            **options,
        )


class ChannelNormalization(FlowBijector):
    """An affine map of channels. The first call creates the variables, which copies share."""

    def __init__(self, channels: ChannelVariables, parameters: dict[str, Any]) -> None:
        name, num_channels = parameters["name"], parameters["num_channels"]
        dtype = tf.as_dtype(channels.variable_dtype)
        expected = f"{name}: expected a positive epsilon"
        self._epsilon = validation.positive(parameters["epsilon"], expected, dtype)
        self._channels = channels
        if num_channels is not None:
            channels.create(validation.count(num_channels, "num_channels", 1, name))
        self._track_layers(channels)
        super().__init__(parameters=parameters)

    @property
    def variables_set_in_training(self) -> tuple[tf.Variable, ...]:
        """All variables of the normalization."""
        return tuple(self._layer_variables)

    def get_config(self) -> dict[str, Any]:
        """Returns constructor arguments that make an equal bijector with new variables."""
        return {**super().get_config(), "num_channels": self._channels.num_channels}

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        return super()._expected_shape(inverse)[:-1].concatenate([self._channels.num_channels])

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape[-1] is None:
            raise ValueError(f"{self.name}: expected a known number of channels, got {shape}.")
