"""A normalization and a 1×1 convolution as one affine map of channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from tfp_realnvp.bijectors.act_norm import ActNorm
from tfp_realnvp.bijectors.invertible_conv1x1 import InvertibleConv1x1
from tfp_realnvp.bijectors.passes import Pass

__all__ = ["NormalizedConv1x1", "join"]


def join(parts: Sequence[Any]) -> Iterator[Any]:
    """Yields the parts of a flow, with a `NormalizedConv1x1` for each norm and convolution."""
    rest = list(parts)
    while rest:
        first, *rest = rest
        if rest and _can_join(first, rest[0]):
            yield NormalizedConv1x1(first, rest.pop(0))
        else:
            yield first


def _can_join(norm: Any, conv: Any) -> bool:
    are_known = type(norm) is ActNorm and type(conv) is InvertibleConv1x1
    return are_known and not (norm.validate_args or conv.validate_args)


class NormalizedConv1x1:
    r"""An `ActNorm` followed by an `InvertibleConv1x1`, as one part of a flow.

    ```
    inverse (data -> latent):  x = W diag(exp(log_scale)) (y - shift)
    forward (latent -> data):  y = diag(exp(-log_scale)) inverse(W) x + shift
    ```

    It takes half of the operations. An observer of the pass gets one report, for the convolution.
    The shift is subtracted before the product: a bias after it would lose digits of a large shift.
    """

    def __init__(self, norm: ActNorm, conv: InvertibleConv1x1) -> None:
        self._norm, self._conv = norm, conv

    def _checked_input(self, value: tf.Tensor, p: Pass, inverse: bool) -> tf.Tensor:
        first, second = (self._norm, self._conv) if inverse else (self._conv, self._norm)
        # Both maps keep the shape.
        second._check_shape(value.shape, inverse)
        return first._checked_input(value, p, inverse)

    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        learned, factors = self._learned(x), self._conv.factors
        log_scale = tf.convert_to_tensor(learned.log_scale)
        matrix = tf.exp(-log_scale)[:, tf.newaxis] * factors.inverse_matrix()
        total = tf.reduce_sum(log_scale + factors.log_scale)
        y = self._conv.multiply(x, matrix, bias=learned.shift)
        return y, self._conv._log_det_of_positions(x, -total, p)

    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        learned = self._learned(y)
        if p.training and not learned.is_known_to_be_set:
            y, log_det = self._norm._inverse_and_log_det(y, p)
            x, another = self._conv._inverse_and_log_det(y, p)
            return x, log_det + another
        factors = self._conv.factors
        matrix, offset, total = factors.normalized(learned.shift, learned.log_scale)
        x = self._conv.multiply(y, matrix, offset=offset)
        return x, self._conv._log_det_of_positions(y, total, p)

    def _checked_results(
        self, value: tf.Tensor, log_det: tf.Tensor, p: Pass, inverse: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        last = self._conv if inverse else self._norm
        return last._checked_results(value, log_det, p, inverse)

    def _learned(self, value: tf.Tensor) -> Any:
        self._norm.learned.build(value.shape[-1], self._norm.dtype)
        return self._norm.learned
