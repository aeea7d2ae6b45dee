"""A whole flow of vectors, and what it knows of its events: `VectorFlow`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.flow_chain import FlowChain
from tfp_realnvp.internal import validation

__all__ = ["VectorFlow"]

tfb = tfp.bijectors


class VectorFlow(FlowChain):
    """A `FlowChain` between latents and vectors, which knows their length.

    `RealNVPVector(...)` returns it.

    #### Example

    >>> import tfp_realnvp as tfr
    >>> flow = tfr.RealNVPVector(5, num_couplings=2, num_filters=8)
    >>> type(flow).__name__, flow.event_size
    ('VectorFlow', 5)
    """

    def __init__(
        self,
        bijectors: Sequence[tfb.Bijector],
        event_size: int,
        *,
        recompute: bool = False,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "vector_flow",
    ) -> None:
        """Constructs the flow from its bijectors.

        Args:
          bijectors: as in `FlowChain`.
          event_size: D, length of the vectors.
          recompute: as in `FlowChain`.
          dtype: as in `FlowChain`.
          validate_args: as in `FlowChain`.
          name: as in `FlowChain`.

        Raises:
          TypeError: as `FlowChain`, or if `event_size` is not a number.
          ValueError: as `FlowChain`, or if `event_size` is not at least 1.
        """
        parameters = dict(locals())
        self._event_size = validation.count(event_size, "event_size", 1, name)
        parameters |= {"bijectors": tuple(bijectors), "event_size": self._event_size}
        super().__init__(
            bijectors,
            recompute=recompute,
            event_ndims=1,
            dtype=dtype,
            validate_args=validate_args,
            parameters=parameters,
            name=name,
        )

    @property
    def event_size(self) -> int:
        """The argument `event_size`: D."""
        return self._event_size

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        return tf.TensorShape([self.event_size])
