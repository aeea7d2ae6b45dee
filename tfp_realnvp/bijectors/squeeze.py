"""Squeezing: space to depth."""

from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.bijectors.flow_bijector import FlowBijector, Pass
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.batch_dims import flatten_batch, unflatten_batch


class Squeeze(FlowBijector):
    r"""Space to depth: maps [..., H, W, C] to [..., H/k, W/k, k²C] with `k = block_size`.

    Each block of k × k pixels becomes one pixel. `order` is the order of the block's pixels (row,
    column) along the channels. For k = 2:

    *   `'plain'`: row by row, as in `tf.nn.space_to_depth`: (0,0), (0,1), (1,0), (1,1).
    *   `'factor_out'`: pixels with an even row + column first: (0,0), (1,1), (0,1), (1,0). The
        first half of the channels is then a checkerboard of the image, for `FactorOut`.

    The log det is zero. A flow maps latents to data, and therefore contains
    `tfb.Invert(Squeeze())`.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> image = tf.constant([[1., 2.], [3., 4.]])[..., tf.newaxis]
    >>> tfr.Squeeze().forward(image).numpy().ravel().tolist()
    [1.0, 2.0, 3.0, 4.0]
    >>> tfr.Squeeze(order='factor_out').forward(image).numpy().ravel().tolist()
    [1.0, 4.0, 2.0, 3.0]

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.6 and figure 3; the
    order `'factor_out'` is from the authors' code.
    """

    def __init__(
        self,
        block_size: int = 2,
        order: str = "plain",
        *,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "squeeze",
    ) -> None:
        """Constructs the bijector.

        Args:
          block_size: the side `k` of a block, at least 2.
          order: `'plain'` or `'factor_out'`.
          dtype, validate_args, name: as in `FlowBijector`.

        Raises:
          TypeError, ValueError: if an argument has a wrong type, or is out of range.
        """
        parameters = dict(locals())
        self.block_size = validation.count(block_size, "block_size", 2, name)
        self.order = validation.choice(order, ("plain", "factor_out"), f"{name}: expected an order")
        super().__init__(is_constant_jacobian=True, parameters=parameters)

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        *sides, channels = shape
        k = self.block_size
        sizes, divisor = ([channels], k**2) if inverse else (sides, k)
        expected = f"a multiple of {k**2} channels to un-squeeze"
        expected = expected if inverse else f"a height and width divisible by {k}"
        are_multiples = all(size is None or size % divisor == 0 for size in sizes)
        validation.require(are_multiples, f"{self.name}: expected {expected}", tuple(shape))

    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        y = self._reordered(tf.nn.space_to_depth(flatten_batch(x), self.block_size))
        return unflatten_batch(y, like=x), self._log_det_of_positions(x, 0.0, p)

    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        x = tf.nn.depth_to_space(self._reordered(flatten_batch(y), back=True), self.block_size)
        return unflatten_batch(x, like=y), self._log_det_of_positions(y, 0.0, p)

    def _reordered(self, squeezed: tf.Tensor, back: bool = False) -> tf.Tensor:
        """Reorders the pixels of each block from the plain order to `order`, or back."""
        if self.order == "plain":
            return squeezed
        k = self.block_size
        positions = sorted(range(k**2), key=lambda position: sum(divmod(position, k)) % 2)
        pixels = tf.split(squeezed, k**2, axis=-1)
        return tf.concat([pixels[i] for i in (np.argsort(positions) if back else positions)], -1)

    def _event_shape(self, shape: Any, inverse: bool) -> Any:
        shape = super()._event_shape(shape, inverse)
        is_static = isinstance(shape, tf.TensorShape)
        if is_static and shape.rank is None:
            return shape
        # Arithmetic with a `Dimension` handles unknown sizes.
        event = map(tf.compat.v1.Dimension, shape[-3:]) if is_static else tf.unstack(shape[-3:])
        (height, width, channels), batch, k = event, shape[:-3], self.block_size
        if inverse:
            event = [height * k, width * k, channels // k**2]
        else:
            event = [height // k, width // k, channels * k**2]
        return batch.concatenate(event) if is_static else tf.concat([batch, event], axis=0)
