"""Base classes of channel normalizations, whose variables are created at the first call."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import tensorflow as tf

from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.internal import validation

__all__ = ["ChannelNormalization", "ChannelVariables"]


class ChannelVariables(tf.Module, abc.ABC):
    """The variables of a normalization; `num_channels` is `None` before `build`."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__(name=name)
        self.num_channels: int | None = None

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
    """The base class of `ActNorm` and `BatchNormalization`.

    A subclass has a constructor argument for its variables, which its copies share even before they
    are created. `get_config` omits this argument.
    """

    # The name of this argument, and the type of the variables.
    _argument: ClassVar[str]
    _variables_type: ClassVar[type[ChannelVariables]]

    def __init__(
        self,
        *,
        num_channels: int | None,
        epsilon: float,
        event_ndims: int,
        dtype: Any,
        validate_args: bool,
        parameters: dict[str, Any],
        name: str,
    ) -> None:
        dtype = validation.float_dtype(dtype, name)
        validation.positive(epsilon, f"{name}: expected a positive epsilon", dtype)
        shared = parameters[self._argument]
        if not (shared is None or isinstance(shared, self._variables_type)):
            kind = self._variables_type.__name__
            raise TypeError(f"{name}: expected {kind} as {self._argument}, got {shared!r}.")
        with tf.name_scope(name):
            self._epsilon = epsilon
            self._channels = self._variables_type() if shared is None else shared
            parameters[self._argument] = self._channels
            if num_channels is not None:
                expected = f"{name}: expected num_channels of at least 1"
                self._channels.build(validation.integer(num_channels, 1, expected), dtype)
            self._check_shared(num_channels, dtype, name)
            super().__init__(
                event_ndims=event_ndims,
                dtype=dtype,
                validate_args=validate_args,
                parameters=parameters,
                name=name,
            )

    def _check_shared(self, num_channels: int | None, dtype: tf.DType, name: str) -> None:
        """Raises `ValueError` if variables that exist have other channels or another dtype."""
        existing = self._channels.num_channels, {v.dtype for v in self._channels.variables}
        if existing[0] is None:
            return
        if num_channels not in (None, existing[0]) or existing[1] != {dtype}:
            raise ValueError(
                f"{name}: expected {self._argument} of {num_channels or 'any number of'} channels "
                f"in {dtype.name}, got {existing[0]} in {', '.join(d.name for d in existing[1])}."
            )

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
        config = {**self.parameters, "num_channels": self._channels.num_channels}
        del config[self._argument]
        return config

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        return super()._expected_shape(inverse)[:-1].concatenate([self._channels.num_channels])

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape[-1] is None:
            raise ValueError(f"{self.name}: expected a known number of channels, got {shape}.")
