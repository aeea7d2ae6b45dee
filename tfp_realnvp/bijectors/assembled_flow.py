"""The base class of whole flows: an architecture, networks that copies share, and a condition."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.architecture import Architecture
from tfp_realnvp.bijectors.conditional_bijector import ConditionalBijector
from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.bijectors.flow_chain import FlowChain
from tfp_realnvp.networks import ConditionEmbedding

__all__ = ["AssembledFlow"]

tfb = tfp.bijectors

_SYNONYMS = ("transformer", "use_scale")


class AssembledFlow(FlowChain):
    """A flow that is built from an architecture: the base class of `RealNVPImage`.

    The argument `flow` holds all networks and statistics. Copies share it; `config` leaves it out,
    and has the values of all other arguments, defaults included.
    """

    architecture_type: ClassVar[type[Architecture]]

    def __init__(
        self,
        architecture: Architecture,
        options: dict[str, Any],
        build: Callable[..., FlowChain],
        next_to_data: Sequence[tfb.Bijector],
        *,
        flow: FlowChain | None,
        validate_args: bool,
        parameters: dict[str, Any],
        name: str,
    ) -> None:
        """Constructs the base.

        Args:
          architecture: the options of the networks in `flow`.
          options: the values of all options, of `Architecture.resolve`.
          build: returns the flow of an architecture, given the shape of an embedded condition or
            `None`.
          next_to_data: bijectors between the flow and the data.
          flow: the attribute `flow` of a bijector of equal architecture; `None` makes a new one.
          validate_args: as in `FlowBijector`.
          parameters: as in `FlowBijector`; the constructor adds the flow and the options.
          name: as in `FlowBijector`.

        Raises:
          ValueError: if `flow` was made for another architecture.
        """
        event_ndims, dtype = architecture.event_ndims, architecture.dtype
        with tf.name_scope(name):
            if flow is None:
                flow = _new_flow(architecture, build, name)
                flow.architecture = architecture
            _check_shared_flow(flow, architecture, name)
            # Two names of one option: `config` has both, a copy may replace either.
            values = {name: options[name] for name in options if name not in _SYNONYMS}
            parameters |= {**values, "network_dtype": architecture.network_dtype, "flow": flow}
            self._flow = flow
            super().__init__(
                [*next_to_data, *flow.bijectors],
                recompute=options["recompute"],
                event_ndims=event_ndims,
                dtype=dtype,
                validate_args=validate_args,
                parameters=parameters,
                name=name,
            )

    @property
    def architecture(self) -> Any:
        """The options of the networks, an `Architecture`."""
        return self._flow.architecture

    def get_config(self) -> dict[str, Any]:
        """Returns constructor arguments of an equal bijector with new networks, all by name."""
        transformer = self.architecture.transformer
        synonyms = {"transformer": transformer, "use_scale": transformer != "additive"}
        config = {**self.parameters, **synonyms}
        del config["flow"]
        return config

    def copy(self, **overrides: Any) -> AssembledFlow:
        """Returns a copy with other constructor arguments, which shares the networks.

        Options of this flow that have no effect beside the others are left out.

        Args:
          **overrides: constructor arguments.
        """
        arguments = {**self.parameters, **overrides}
        options = self.architecture_type.resolve(arguments, strict=False)
        kept = {name: options[name] for name in options if name not in {*overrides, *_SYNONYMS}}
        return super().copy(**{**kept, **overrides})

    @property
    def flow(self) -> FlowChain:
        """The flow between latents and the bijector next to the data; it holds all weights."""
        return self._flow

    @property
    def condition_embedding(self) -> ConditionEmbedding | None:
        """The embedding of the condition; `None` without one."""
        parts = [part for part in self._flow.bijectors if isinstance(part, ConditionalBijector)]
        return parts[0].embedding if parts else None

    # Events keep their shape.
    _forward_event_shape = FlowBijector._forward_event_shape
    _inverse_event_shape = FlowBijector._inverse_event_shape
    _forward_event_shape_tensor = FlowBijector._forward_event_shape_tensor
    _inverse_event_shape_tensor = FlowBijector._inverse_event_shape_tensor


def _new_flow(
    architecture: Architecture,
    build: Callable[..., FlowChain],
    name: str,
) -> FlowChain:
    spec, dtype = architecture.condition, architecture.dtype
    if spec is None:
        return build(architecture, None)
    # Conditions and their embedding are small, so that full precision costs little.
    embedding = ConditionEmbedding(
        spec.event_shape,
        num_classes=spec.num_classes,
        size=architecture.embedding_size,
        dropout=spec.dropout,
        dtype=dtype.name,
        name=f"{name}_condition",
    )
    flow = build(architecture, embedding.embedded_shape)
    flow = ConditionalBijector(flow, embedding, dtype=dtype, name=name)
    return FlowChain([flow], event_ndims=architecture.event_ndims, dtype=dtype, name=f"{name}_flow")


def _check_shared_flow(flow: FlowChain, architecture: Architecture, name: str) -> None:
    if flow.architecture == architecture:
        return
    different = {
        field.name: getattr(architecture, field.name)
        for field in dataclasses.fields(architecture)
        if getattr(flow.architecture, field.name, None) != getattr(architecture, field.name)
    }
    raise ValueError(
        f"{name}: expected the options that the shared networks were made for, got {different}; "
        f"construct a new {architecture.flow_name} for another architecture."
    )
