"""Variational dequantization: learned noise instead of uniform noise."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp import pixels
from tfp_realnvp.bijectors.flow_bijector import surrounding_pass
from tfp_realnvp.flows import ImageFlow, coupling_layer, multi_scale, network_of
from tfp_realnvp.internal import validation
from tfp_realnvp.networks import ShallowConv


class VariationalDequantization(tf.Module):
    r"""A conditional flow q(u | x) on [0, 1)^D that generates noise u for gray levels x.

    ```
    u = Φ(g(ε; x)),   ε ~ N(0, I),   log q(u | x) = log N(ε) - log |det dg/dε| - log φ(g(ε; x))
    log P(x) >= E_q[log p(x + u) - log q(u | x)]
    ```

    Here g is a flow with the image as condition; Φ and φ are the standard normal CDF and density.
    The flow g starts as the identity, so q starts as uniform noise.

    `FlowModel(distribution, dequantizer=...)` trains q together with the distribution. Loss and
    bits/dim are then upper bounds; `evaluation.bits_per_dim` also gives the tighter
    importance-weighted bound.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> dequantizer = tfr.VariationalDequantization((4, 4, 1), num_filters=8)
    >>> images = tf.constant(7, tf.uint8, [5, 4, 4, 1])
    >>> values, log_q = dequantizer.dequantize(images, seed=(0, 1))
    >>> bool(tf.reduce_all(tf.floor(values) == 7)), log_q.shape, float(tf.reduce_max(abs(log_q)))
    (True, TensorShape([5]), 0.0)

    #### References

    Ho, Chen, Srinivas, Duan, Abbeel: Flow++, section 3.1.
    """

    def __init__(
        self,
        image_shape: Sequence[int | None],
        *,
        num_values: int = 256,
        num_scales: int | None = None,
        num_couplings: int | None = None,
        num_filters: int | None = None,
        network_dtype: str | None = None,
        recompute: bool = False,
        bijector: ImageFlow | None = None,
        dtype: Any = tf.float32,
        name: str = "variational_dequantization",
    ) -> None:
        """Constructs the dequantizer and its networks.

        Args:
          image_shape: (height, width, channels).
          num_values: number of gray levels.
          num_scales, num_couplings, num_filters, network_dtype, recompute: options of g as in
            `RealNVPImage`; by default 1 scale, 4 checkerboard couplings per scale, and 32 filters.
          bijector: g itself, instead of its options: an `ImageFlow` without `PixelLogit`, such as
            `multi_scale(image_shape, ..., conditional_event_shape=image_shape)`.
          dtype: the distribution's dtype, `tf.float32` or `tf.float64`.
          name: name of the module.

        Raises:
          TypeError, ValueError: if an argument is out of range or has no effect.
        """
        super().__init__(name=name)
        self.num_values = validation.count(num_values, "num_values", 2, name)
        self.dtype = validation.float_dtype(dtype, name)
        of_g: dict[str, Any] = {"num_scales": num_scales, "num_couplings": num_couplings}
        of_g |= {"num_filters": num_filters, "network_dtype": network_dtype}
        of_g["recompute"] = recompute or None
        for option, value in of_g.items():
            validation.only(value, option, bijector is None, "without a bijector", name)
        if bijector is None:
            filters = 32 if num_filters is None else num_filters
            widths: dict[str, Any] = {"filter_growth": 2.0, "network_dtype": network_dtype}
            layer = coupling_layer(network_of(ShallowConv), filters, **widths)
            num_scales = 1 if num_scales is None else num_scales
            options: dict[str, Any] = {"conditional_event_shape": image_shape, "dtype": self.dtype}
            options |= {"num_couplings": 4 if num_couplings is None else num_couplings}
            options |= {"recompute": recompute, "name": f"{name}_flow"}
            bijector = multi_scale(image_shape, num_scales, layer, **options)
        self.bijector = bijector

    def dequantize(
        self, images: tf.Tensor, seed: Any, *, first: tf.Tensor | int = 0, training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `floor(images) + u` with u ~ q(u | images), and log q(u | images), [B], in nats.

        Args:
          images: gray levels [B, H, W, C] of any integer or floating dtype.
          seed, first: as in `tfr.dequantize`.
          training: as in `FlowBijector`.
        """
        noise_fn = functools.partial(pixels.batch_noise, seed=seed, first=first)
        return self.add_noise(images, noise_fn, training=training)

    def add_noise(
        self, images: tf.Tensor, noise_fn: Callable[[tf.Tensor], tf.Tensor], training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Like `dequantize`, with U[0, 1) noise from `noise_fn(gray_levels)` instead of a seed."""
        levels = tf.floor(tf.cast(images, self.dtype))
        uniform = noise_fn(levels)
        epsilon = float(np.finfo(self.dtype.as_numpy_dtype).eps)
        # The normal quantiles of 0 and 1 are infinite.
        noise = tf.math.ndtri(tf.clip_by_value(uniform, epsilon, 1 - epsilon))
        condition = levels / ((self.num_values - 1) / 2) - 1
        options = {"training": training, "conditional_input": condition}
        transformed, fldj = self.bijector.forward_and_log_det(noise, **options)
        # The terms log(2π) / 2 of the two normal densities cancel.
        log_ratio = 0.5 * (tf.square(transformed) - tf.square(noise))
        surrounding_pass().record(-log_ratio)
        log_q = tf.reduce_sum(log_ratio, axis=[1, 2, 3]) - fldj
        u = 0.5 * (1 + tf.math.erf(transformed / math.sqrt(2)))
        return pixels.add_fractions(levels, u), log_q

    def get_config(self) -> dict[str, Any]:
        """Returns constructor arguments that make an equal dequantizer."""
        return {
            "image_shape": self.bijector.image_shape,
            "num_values": self.num_values,
            "recompute": False,  # the bijector's configuration has it
            "bijector": self.bijector,
            "dtype": self.dtype,
            "name": self.name,
        }
