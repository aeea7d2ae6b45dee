"""The base classes of `ActNorm` and `BatchNormalization`."""

from __future__ import annotations

import abc
from typing import Any

import tensorflow as tf

from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.internal import validation

__all__ = ["ChannelNormalization", "ChannelVariables"]


class ChannelVariables(tf.Module, abc.ABC):
    """The variables of a normalization; `num_channels` is `None` before `build`."""

    num_channels: int | None = None

    def build(self, num_channels: int, dtype: tf.DType) -> None:
        """Creates the variables, unless they exist."""
        if self.num_channels is None:
            with tf.init_scope():
                self._create(num_channels, dtype)
            self.num_channels = num_channels

    @abc.abstractmethod
    def _create(self, num_channels: int, dtype: tf.DType) -> None:
        """Creates the variables, with the values of the identity map."""


class ChannelNormalization(FlowBijector):
    """An affine map of channels, whose variables are created at the first call.

    Copies share the variables even before they are created.
    """

    def __init__(self, channels: ChannelVariables, parameters: dict[str, Any]) -> None:
        name, num_channels = parameters["name"], parameters["num_channels"]
        dtype = validation.float_dtype(parameters["dtype"], name)
        expected = f"{name}: expected a positive epsilon"
        self._epsilon = validation.positive(parameters["epsilon"], expected, dtype)
        self._channels = channels
        with tf.name_scope(name):
            if num_channels is not None:
                num_channels = validation.count(num_channels, "num_channels", 1, name)
                channels.build(num_channels, dtype)
            super().__init__(parameters=parameters)

    @property
    def is_built(self) -> bool:
        """Whether the variables exist."""
        return self._channels.num_channels is not None

    @property
    def variables_set_in_training(self) -> tuple[tf.Variable, ...]:
        """All variables of the normalization."""
        return tuple(self._channels.variables)

    def get_config(self) -> dict[str, Any]:
        """Returns constructor arguments that make an equal bijector with new variables."""
        return {**super().get_config(), "num_channels": self._channels.num_channels}

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        return super()._expected_shape(inverse)[:-1].concatenate([self._channels.num_channels])

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape[-1] is None:
            raise ValueError(f"{self.name}: expected a known number of channels, got {shape}.")
