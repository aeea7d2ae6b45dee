"""Couplings that the gradient takes two at a time, so that half of the images are kept."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp
from tensorflow.python.eager import record
from tensorflow.python.ops import resource_variable_ops

from tfp_realnvp.bijectors import parts
from tfp_realnvp.bijectors.flow_bijector import FlowBijector

__all__ = ["Pass", "apply_run", "runs_of"]

tfb = tfp.bijectors


@dataclasses.dataclass(frozen=True)
class Pass:
    """How to go back after a part was applied to an image.

    Attributes:
      gradient: from the gradients by result and log det, the image and the result, to the gradients
        by image and variables, and the image. A part without a network needs the result only; one
        with needs its changed half from the image, and the other one from any of both.
      again: the result and the log det, of the image, by operations that a tape can follow; it
        writes no variable.
      variables: of which the gradient is.
      repeat: the result, of the image, for each position and channel alone; `None` if there is a
        network.
    """

    gradient: Callable[..., tuple[tf.Tensor, Sequence[tf.Tensor], tf.Tensor | None]]
    again: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    variables: Sequence[tf.Variable] = ()
    repeat: Callable[[tf.Tensor], tf.Tensor] | None = None


def runs_of(bijectors: Sequence[tfb.Bijector], **options: Any) -> Iterator[list[tfb.Bijector]]:
    """Yields the parts of an inverse pass, those together that `apply_run` takes as one.

    A run ends with its second coupling, and the next one starts with the normalisation of what that
    gives. Other parts come alone, and so do all where each is asked for what it gives.
    """
    run: list[FlowBijector] = []
    for part in bijectors:
        joins = isinstance(part, FlowBijector) and part.joins_run(**options)
        joins = joins and not (part.validate_args or parts.is_observed())
        if run and not (joins and _fits(run, part)):
            yield run
            run = []
        if joins:
            run.append(part)
        else:
            yield [part]
    if run:
        yield run


def _fits(run: Sequence[FlowBijector], part: FlowBijector) -> bool:
    with_networks = [each for each in run if each.layers]
    if not with_networks:
        return True
    if part.layers:
        return len(with_networks) == 1 and part.completes(with_networks[0])
    # Of two normalisations the first one's result would be lost.
    return run[-1] is with_networks[0] and len(with_networks) == 1


def apply_run(
    steps: Sequence[Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, Pass]]], image: tf.Tensor
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns what steps make of an image, of which the gradient keeps the first and the last.

    What the second coupling kept is in its result. What it changed the first one kept: that is in
    the first image, but for normalisations, which are repeated. So each coupling's gradient has the
    very image that the coupling had. Where a tape records the gradient, for the gradient of that,
    it is one of all that the steps do.

    Args:
      steps: from an image to the result, the log det and the way back; as `runs_of` puts parts
        together, or a single one.
      image: [..., H, W, C].

    Returns:
      The last result, and the log dets of all.
    """
    log_dets, passes, result = [], [], image
    with record.stop_recording():
        for step in steps:
            result, log_det, back = step(result)
            log_dets.append(log_det)
            passes.append(back)
    variables = list(itertools.chain.from_iterable(each.variables for each in passes))
    # A single coupling has all that it needs in its image.
    needs_none = passes[-1].repeat is None and all(each.repeat for each in passes[:-1])
    kept = [image, None if needs_none else result]

    def gradient(by_image: tf.Tensor, *by_log_dets: tf.Tensor) -> list[tf.Tensor]:
        if record.could_possibly_record():
            return _gradient_to_record(passes, image, variables, [by_image, *by_log_dets])
        # Not before the gradient arrives: a graph runs what is ready, and would keep it until then.
        with tf.control_dependencies([by_image]):
            images = _images(passes, *kept)
        by_variables: list[tf.Tensor] = []
        for i in reversed(range(len(passes))):
            by_image, by_own, images[i] = passes[i].gradient(
                by_image, by_log_dets[i], images[i], images[i + 1]
            )
            by_variables = [*by_own, *by_variables]
        return [by_image, *by_variables]

    for variable in variables:
        resource_variable_ops.variable_accessed(variable)
    # The variables are sources as they are: `tf.custom_gradient` would add operations for each.
    sources = [image, *(variable.handle for variable in variables)]
    record.record_operation("FlowRun", [result, *log_dets], sources, gradient)
    return result, log_dets


def _images(
    passes: Sequence[Pass], image: tf.Tensor, result: tf.Tensor | None
) -> list[tf.Tensor | None]:
    """Returns each pass's image, and last the result; `None` for what no gradient needs.

    That of a second coupling only has the half that the coupling changes.
    """
    couplings = [i for i, each in enumerate(passes) if each.repeat is None]
    first, *second = couplings or [len(passes)]
    images = [image, *[None] * (len(passes) - 1), result]
    for i in range(min(first, len(passes) - 1)):
        images[i + 1] = passes[i].repeat(images[i])
    if second:
        half = images[first]
        for each in passes[first + 1 : second[0]]:
            half = each.repeat(half)
        images[second[0]] = half
    return images


def _gradient_to_record(
    passes: Sequence[Pass],
    image: tf.Tensor,
    variables: Sequence[tf.Variable],
    upstream: Sequence[tf.Tensor],
) -> list[tf.Tensor]:
    sources = [image, *variables]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        result, log_dets = image, []
        for each in passes:
            result, log_det = each.again(result)
            log_dets.append(log_det)
    return tape.gradient(
        [result, *log_dets],
        sources,
        output_gradients=upstream,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )
