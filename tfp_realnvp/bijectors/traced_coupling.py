"""Couplings of equal configuration in one graph, traced once."""

from __future__ import annotations

import functools
import itertools
import json
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import keras
import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.ops import resource_variable_ops

from tfp_realnvp.groups import assign, read, unfolded
from tfp_realnvp.masks import CheckerboardMask, Mask
from tfp_realnvp.networks import Conditioner
from tfp_realnvp.networks.weight_norm_conv import (
    WeightNormConv2D,
    fixed_kernels,
    gradient_of_normalized,
    kernels_are_fixed,
    normalize_kernels,
)

__all__ = ["apply_recomputed", "can_be_traced"]

# Functions of a graph, by the configuration of the couplings that they stand for.
_functions: weakref.WeakKeyDictionary[tf.Graph, dict[Any, _CouplingFunction]]
_functions = weakref.WeakKeyDictionary()


class Coupling(Protocol):
    """What is asked of a coupling here."""

    mask: Mask
    network: Conditioner
    scale: tf.Variable | None
    accepts_parity: bool

    def pure_call(
        self, image: tf.Tensor, scale: Any, *, inverse: bool, parity: Any, **options: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the image, changed, and the log det."""


def can_be_traced(network: Callable[..., tf.Tensor]) -> bool:
    """Returns whether `apply_recomputed` may be asked for a coupling of it, here and now."""
    return (
        isinstance(network, Conditioner)
        and network.built
        and tf.inside_function()
        and not tf.distribute.in_cross_replica_context()
        and tf.distribute.get_strategy().num_replicas_in_sync == 1
        and not kernels_are_fixed()
    )


def apply_recomputed(
    coupling: Coupling, image: tf.Tensor, **options: bool
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns `coupling.pure_call`, of which the gradient keeps nothing but the image.

    The backward pass runs the coupling a second time and differentiates that. Both are functions of
    the image, the parity of the mask and the coupling's variables, and stay functions in the graph:
    all couplings of equal configuration call the same ones, so that what is traced, optimised and
    kept in memory grows with the number of different couplings, not with that of all.

    Args:
      coupling: one of whose network `can_be_traced`.
      image: [..., H, W, C].
      **options: `inverse`, and those of the network's call.

    Returns:
      The image, and the log det. Moving statistics of the network move, once.
    """
    # A network that takes `training` does less without it, if it knows the parity.
    takes_parity = coupling.accepts_parity and options.get("training", True)
    parity = unfolded(coupling.mask.parity) if takes_parity else None
    function = _function_of(coupling, takes_parity, options)
    variables = _Variables.of(coupling)
    all_of_them = *variables.of_kernels, *variables.others
    trainable = list(itertools.compress(all_of_them, variables.is_trainable))
    for variable in trainable:
        resource_variable_ops.variable_accessed(variable)
    with record.stop_recording():
        of_kernels, others, moving = map(read, variables[:3])
        normalized = _normalized(of_kernels)
        *outputs, moved = function.apply(image, parity, normalized, others, moving)
        if options.get("training"):
            assign(variables.moving, moved)

    def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
        # Not before it is wanted: else the normalised kernels of all couplings would be there.
        with tf.control_dependencies(upstream[:1]):
            normalized = _normalized(of_kernels)
        by_image, by_normalized, by_others = function.gradient(
            image, parity, normalized, others, moving, upstream
        )
        number = len(of_kernels) // 2
        by_kernels, by_scales = gradient_of_normalized(
            of_kernels[:number], of_kernels[number:], by_normalized
        )
        by_variables = *by_kernels, *by_scales, *by_others
        return [by_image, *itertools.compress(by_variables, variables.is_trainable)]

    # The variables are sources as they are: `tf.custom_gradient` would add operations for each.
    sources = [image, *(variable.handle for variable in trainable)]
    record.record_operation("Coupling", outputs, sources, gradient)
    return tuple(outputs)


class _Variables(NamedTuple):
    """What a coupling's function takes of its variables.

    Attributes:
      of_kernels: kernels of weight-normalised convolutions, and then their scales.
      others: of the network, those that are trained; last the scale of the coupling.
      moving: of the network, all others.
      is_trainable: of each of `of_kernels` and of `others`.
    """

    of_kernels: list[tf.Variable]
    others: list[tf.Variable]
    moving: list[tf.Variable]
    is_trainable: list[bool]

    @classmethod
    def of(cls, coupling: Coupling) -> _Variables:
        convs = _weight_norm_layers(coupling.network)
        of_kernels = [*(conv.kernel for conv in convs), *(conv.scale for conv in convs)]
        others, moving = _other_variables(coupling.network)
        own = [] if coupling.scale is None else [coupling.scale]
        return cls(
            [variable.value for variable in of_kernels],
            [*(variable.value for variable in others), *own],
            [variable.value for variable in moving],
            [variable.trainable for variable in (*of_kernels, *others, *own)],
        )


def _weight_norm_layers(network: Conditioner) -> list[WeightNormConv2D]:
    return [each for each in network._flatten_layers() if isinstance(each, WeightNormConv2D)]


def _other_variables(
    network: Conditioner,
) -> tuple[list[keras.Variable], list[keras.Variable]]:
    convs = _weight_norm_layers(network)
    of_kernels = {id(variable) for conv in convs for variable in (conv.kernel, conv.scale)}
    others, moving = (
        [variable for variable in variables if id(variable) not in of_kernels]
        for variables in (network.trainable_variables, network.non_trainable_variables)
    )
    return others, moving


def _normalized(of_kernels: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    number = len(of_kernels) // 2
    return normalize_kernels(of_kernels[:number], of_kernels[number:])


def _function_of(
    coupling: Coupling, takes_parity: bool, options: dict[str, bool]
) -> _CouplingFunction:
    functions = _functions.setdefault(tf.compat.v1.get_default_graph(), {})
    network = coupling.network
    # The call says it, to the network of a checkerboard.
    is_told = takes_parity and isinstance(coupling.mask, CheckerboardMask)
    left_out = ("name", "checkerboard_parity") if is_told else ("name",)
    config = {key: value for key, value in network.get_config().items() if key not in left_out}
    flags = [coupling.scale is None, *(v.trainable for v in network.variables)]
    key = json.dumps([config, options, flags], sort_keys=True, default=repr)
    mask = type(coupling.mask) if takes_parity else coupling.mask
    key = type(coupling), type(network), mask, key
    if key not in functions:
        functions[key] = _CouplingFunction(coupling, options)
    return functions[key]


class _CouplingFunction:
    """A coupling as a pure function of all that it uses, and the gradient of that."""

    def __init__(self, coupling: Coupling, options: dict[str, bool]) -> None:
        self._coupling = coupling
        self._options = options
        # A function that is inlined would be traced once, but optimised and kept at each call.
        function = functools.partial(
            tf.function, autograph=False, experimental_attributes={"_noinline": True}
        )
        self.apply = function(self._apply)
        self.gradient = function(self._gradient)

    def _apply(
        self,
        image: tf.Tensor,
        parity: tf.Tensor | None,
        normalized: Sequence[tf.Tensor],
        others: Sequence[tf.Tensor],
        moving: Sequence[tf.Tensor],
        **options: bool,
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        network = self._coupling.network
        own, writable = _other_variables(network)
        mapping = [
            *zip(own, others[: len(own)], strict=True),
            *zip(writable, moving, strict=True),
        ]
        scale = others[-1] if len(others) > len(own) else None
        kernels = dict(zip(_weight_norm_layers(network), normalized, strict=True))
        with keras.StatelessScope(mapping) as scope, fixed_kernels(kernels):
            options = {**self._options, **options}
            outputs = self._coupling.pure_call(image, scale, parity=parity, **options)
        return *outputs, [scope.get_current_value(variable) for variable in writable]

    def _gradient(
        self,
        image: tf.Tensor,
        parity: tf.Tensor | None,
        normalized: Sequence[tf.Tensor],
        others: Sequence[tf.Tensor],
        moving: Sequence[tf.Tensor],
        upstream: Sequence[tf.Tensor],
    ) -> list[Any]:
        sources = [image, list(normalized), list(others)]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            *outputs, _ = self._apply(image, parity, normalized, others, moving, renormalize=True)
        return tape.gradient(
            outputs,
            sources,
            output_gradients=list(upstream),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
