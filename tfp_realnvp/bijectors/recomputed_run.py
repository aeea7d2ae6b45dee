"""Several parts of a flow as one for the gradient, which goes back from their result."""

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

# Those of a run that have a network. What the second one changed is recovered from its result, with
# rounding; what it kept, and all that its network computes from that, is exact. With more of them
# networks would compute from what was recovered, and errors grow.
_NUM_NETWORKS = 2


@dataclasses.dataclass(frozen=True)
class Pass:
    """How to go back after a part was applied to an image.

    Attributes:
      gradient: from the gradients by its result and its log det, the image (`None` if it is not
        kept) and the result, to the gradients by the image and by the variables, and the image.
      again: the result and the log det, of the image, by operations that a tape can follow; it
        writes no variable.
      variables: of which the gradient is.
      repeat: the result, of the image; `None` if that takes a network.
    """

    gradient: Callable[..., tuple[tf.Tensor, Sequence[tf.Tensor], tf.Tensor]]
    again: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    variables: Sequence[tf.Variable] = ()
    repeat: Callable[[tf.Tensor], tf.Tensor] | None = None


def runs_of(bijectors: Sequence[tfb.Bijector], **options: Any) -> Iterator[list[tfb.Bijector]]:
    """Yields the parts of an inverse pass, those together that `apply_run` takes as one.

    A run ends with its second network, so that the next one starts with the normalisation of its
    result. Other parts come alone, and so do all where each is asked for what it gives.
    """
    run, num_networks = [], 0
    for part in bijectors:
        joins = isinstance(part, FlowBijector) and part.joins_run(**options)
        joins = joins and not (part.validate_args or parts.is_observed())
        if run and not (joins and num_networks < _NUM_NETWORKS):
            yield run
            run, num_networks = [], 0
        if joins:
            run.append(part)
            num_networks += bool(part.layers)
        else:
            yield [part]
    if run:
        yield run


def apply_run(
    steps: Sequence[Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor, Pass]]], image: tf.Tensor
) -> tuple[tf.Tensor, list[tf.Tensor]]:
    """Returns what steps make of an image, of which the gradient keeps the first and the last.

    The gradient goes from the last step to the first. Those before the first network are repeated,
    which gives the very same; what the others were applied to, each gradient recovers. Where a tape
    records the gradient, for the gradient of that, it is one of all that the steps do.

    Args:
      steps: from an image to the result, the log det and the way back; at least one.
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
    # All before this one are repeated. Without a network none is, for all need only results.
    first = next((i for i, each in enumerate(passes) if each.repeat is None), -1)
    kept_result = None if first == len(passes) - 1 else result
    variables = list(itertools.chain.from_iterable(each.variables for each in passes))

    def gradient(by_image: tf.Tensor, *by_log_dets: tf.Tensor) -> list[tf.Tensor]:
        if record.could_possibly_record():
            return _gradient_to_record(passes, image, variables, [by_image, *by_log_dets])
        after, images = kept_result, {}
        by_variables: list[tf.Tensor] = []
        for i in reversed(range(len(passes))):
            if i == first:
                images = _images_until(first, passes, image, by_image)
            by_image, by_own, after = passes[i].gradient(
                by_image, by_log_dets[i], images.get(i), after
            )
            by_variables = [*by_own, *by_variables]
        return [by_image, *by_variables]

    for variable in variables:
        resource_variable_ops.variable_accessed(variable)
    # The variables are sources as they are: `tf.custom_gradient` would add operations for each.
    sources = [image, *(variable.handle for variable in variables)]
    record.record_operation("FlowRun", [result, *log_dets], sources, gradient)
    return result, log_dets


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


def _images_until(
    end: int, passes: Sequence[Pass], image: tf.Tensor, upstream: tf.Tensor
) -> dict[int, tf.Tensor]:
    images = [image]
    # Not before the gradient arrives: a graph runs what is ready, and would keep them until then.
    with tf.control_dependencies([upstream]):
        for each in passes[:end]:
            images.append(each.repeat(images[-1]))
    return dict(enumerate(images))
