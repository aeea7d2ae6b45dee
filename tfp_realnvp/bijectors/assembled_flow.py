"""What whole flows share: a configuration, networks that copies share, and a condition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors import nested
from tfp_realnvp.bijectors.embedded_condition import EmbeddedCondition
from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.bijectors.flow_chain import FlowChain
from tfp_realnvp.internal import validation
from tfp_realnvp.networks import ConditionEmbedding

__all__ = ["AssembledFlow", "default_network_dtype"]

tfb = tfp.bijectors


class AssembledFlow(FlowBijector):
    """A flow that is built from a configuration: the base class of `RealNVPImage`.

    The argument `flow` holds all networks and statistics. Copies share it; `config` leaves it out.
    """

    def __init__(
        self,
        build: Callable[[tuple[int | None, ...] | None], FlowChain],
        architecture: dict[str, Any],
        condition: dict[str, Any],
        flow: FlowChain | None,
        next_to_data: Sequence[tfb.Bijector],
        *,
        event_ndims: int,
        recompute: bool,
        dtype: tf.DType,
        validate_args: bool,
        parameters: dict[str, Any],
        name: str,
    ) -> None:
        """Constructs the base.

        Args:
          build: returns the flow, given the shape of an embedded condition or `None`.
          architecture: what the networks in `flow` are specific to.
          condition: the arguments of a `ConditionEmbedding`.
          flow: that of another bijector of the same configuration, or `None`.
          next_to_data: bijectors between the flow and the data.
          event_ndims: 3 for images, 1 for vectors.
          recompute: as in `FlowChain`.
          dtype: as in `FlowBijector`.
          validate_args: as in `FlowBijector`.
          parameters: as in `FlowBijector`; this adds the flow.
          name: as in `FlowBijector`.

        Raises:
          ValueError: if `flow` was made for another configuration.
        """
        configuration = {**architecture, **condition}
        with tf.name_scope(name):
            if flow is None:
                flow = _new_flow(build, condition, event_ndims, dtype, name)
                flow.architecture = self._no_dependency(configuration)
            _check_shared_flow(flow, configuration, name)
            parameters["flow"] = flow
            self._flow = flow
            self._chain = FlowChain(
                [*next_to_data, *flow.bijectors],
                recompute=recompute,
                event_ndims=event_ndims,
                dtype=dtype,
            )
            super().__init__(
                event_ndims=event_ndims,
                dtype=dtype,
                is_constant_jacobian=self._chain.is_constant_jacobian,
                validate_args=validate_args,
                parameters=parameters,
                name=name,
            )

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments that make an equal bijector with its own networks."""
        return {key: value for key, value in self.parameters.items() if key != "flow"}

    @property
    def flow(self) -> FlowChain:
        """The flow between latents and the bijector next to the data; it holds all weights."""
        return self._flow

    @property
    def accepts_conditional_input(self) -> bool:
        """Whether a network takes `conditional_input`."""
        return nested.accepts_conditional_input(self._flow)

    @property
    def condition_embedding(self) -> ConditionEmbedding | None:
        """The embedding of the condition; `None` without one."""
        parts = [each for each in self._flow.bijectors if isinstance(each, EmbeddedCondition)]
        return parts[0].embedding if parts else None

    def _forward_and_log_det(self, x: tf.Tensor, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        return self._chain._forward_and_log_det(x, **options)

    def _inverse_and_log_det(self, y: tf.Tensor, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        return self._chain._inverse_and_log_det(y, **options)


def default_network_dtype(network_dtype: str | None, dtype: tf.DType) -> str:
    """Returns the policy of networks: by default the global one, or float64 if the flow's is."""
    if network_dtype is not None:
        return network_dtype
    return "float64" if dtype == tf.float64 else keras.config.dtype_policy().name


def _new_flow(
    build: Callable[..., FlowChain],
    condition: dict[str, Any],
    event_ndims: int,
    dtype: tf.DType,
    name: str,
) -> FlowChain:
    if condition["conditional_event_shape"] is None and condition["num_classes"] is None:
        validation.require(
            condition["dropout"] is None,
            f"{name}: expected no condition_dropout without a condition",
            condition["dropout"],
        )
        return build(None)
    # Conditions and their embedding are few numbers: in full precision.
    embedding = ConditionEmbedding(**condition, dtype=dtype.name, name=f"{name}_condition")
    flow = EmbeddedCondition(build(embedding.embedded_shape), embedding, dtype=dtype, name=name)
    return FlowChain([flow], event_ndims=event_ndims, dtype=dtype, name=f"{name}_flow")


def _check_shared_flow(flow: FlowChain, configuration: dict[str, Any], name: str) -> None:
    made_for = getattr(flow, "architecture", {})
    different = {key: value for key, value in configuration.items() if made_for.get(key) != value}
    if different:
        raise ValueError(
            f"{name}: expected the configuration that the shared networks were made for, got "
            f"{different}; construct a new {name} for another architecture."
        )
