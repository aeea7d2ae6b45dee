"""Weight-normalised convolution."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp import checks
from tfp_realnvp.groups import map_in_groups

__all__ = [
    "WeightNormConv2D",
    "convolve",
    "fixed_kernels",
    "kernels_are_fixed",
    "normalized_at_once",
]

_fixed_kernels: contextvars.ContextVar[Mapping[WeightNormConv2D, Any] | None]
_fixed_kernels = contextvars.ContextVar("fixed_kernels", default=None)


def kernels_are_fixed() -> bool:
    """Returns whether `fixed_kernels` is in effect."""
    return _fixed_kernels.get() is not None


@contextlib.contextmanager
def fixed_kernels(kernels: Mapping[WeightNormConv2D, tf.Tensor | tf.Variable]) -> Iterator[None]:
    """Lets layers convolve with these kernels instead of normalising theirs.

    #### Example

    >>> import tensorflow as tf
    >>> layer = WeightNormConv2D(1, 1, use_bias=False)
    >>> _ = layer(tf.ones([1, 1, 1, 1]))
    >>> with fixed_kernels({layer: tf.Variable([[[[3.0]]]])}):
    ...   y = layer(tf.ones([1, 1, 1, 1]))
    >>> float(y[0, 0, 0, 0])
    3.0

    Args:
      kernels: what `normalized_kernel` of each layer gave.
    """
    token = _fixed_kernels.set(kernels)
    try:
        yield
    finally:
        _fixed_kernels.reset(token)


@contextlib.contextmanager
def normalized_at_once(layers: Sequence[WeightNormConv2D]) -> Iterator[None]:
    """Lets layers convolve with kernels that are normalised here, by one operation for all of them.

    #### Example

    >>> import tensorflow as tf
    >>> layers = [WeightNormConv2D(1, 1, initial_scale=3.0) for _ in range(2)]
    >>> for layer in layers:
    ...   layer.build((None, None, None, 1))
    >>> with normalized_at_once(layers):
    ...   y = sum(layer(tf.ones([1, 1, 1, 1])) for layer in layers)
    >>> abs(float(y[0, 0, 0, 0])) in (0.0, 6.0)
    True

    Args:
      layers: all that convolve within, built.
    """
    if kernels_are_fixed():
        yield
        return
    kernels = [tf.convert_to_tensor(layer.kernel.value) for layer in layers]
    scales = [tf.convert_to_tensor(layer.scale.value) for layer in layers]
    normalized = _normalize_at_once(*kernels, *scales)
    with fixed_kernels(dict(zip(layers, normalized, strict=True))):
        yield


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class WeightNormConv2D(keras.layers.Layer):
    r"""A 2-D convolution, stride 1 and padding 'same', whose kernel has a learned norm.

    ```
    w[:, :, :, k] = scale[k] * kernel[:, :, :, k] / ||kernel[:, :, :, k]||,    y = conv(x, w) + bias
    ```

    The scale starts at `initial_scale`: with 1, an input whose elements have a mean square of 1
    gives an output whose elements have about the same.

    #### Example

    >>> import tensorflow as tf
    >>> layer = WeightNormConv2D(8, 3)
    >>> layer(tf.ones([2, 5, 5, 3])).shape, len(layer.trainable_variables)
    (TensorShape([2, 5, 5, 8]), 3)

    #### References

    Salimans, Kingma: Weight Normalization, eq. 2; used throughout by Real NVP (section 3.7).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        use_bias: bool = True,
        initial_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        """Constructs the layer.

        Args:
          filters: number of output channels.
          kernel_size: side of the kernel.
          use_bias: whether to add a bias.
          initial_scale: what the norm of each filter starts with.
          **kwargs: `name`, `dtype`, as in `keras.layers.Layer`.

        Raises:
          ValueError: if a number is out of range.
          TypeError: if one of them is no number, or `use_bias` no bool.
        """
        super().__init__(**kwargs)
        checks.flag(use_bias, f"{self.name}: expected a bool as use_bias")
        checks.finite(
            initial_scale, 0, f"{self.name}: expected a finite initial_scale of at least 0"
        )
        self.filters = checks.integer(filters, 1, f"{self.name}: expected filters of at least 1")
        self.kernel_size = checks.integer(
            kernel_size, 1, f"{self.name}: expected a kernel_size of at least 1"
        )
        self.use_bias = use_bias
        self.initial_scale = initial_scale
        self.scale = self.bias = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Makes the variables for inputs of `input_shape`, [B, H, W, C]."""
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        # Only the direction counts, so that any isotropic initialiser will do.
        self.kernel = self.add_weight(
            name="kernel", shape=shape, initializer="random_normal", autocast=False
        )
        self.scale = self.add_weight(
            name="scale",
            shape=(self.filters,),
            initializer=keras.initializers.Constant(self.initial_scale),
            autocast=False,
        )
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias", shape=(self.filters,), initializer="zeros", autocast=False
            )

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns [B, H, W, filters] for inputs [B, H, W, C]."""
        return convolve(inputs, *self.kernel_and_bias())

    def kernel_and_bias(
        self, factor: tf.Tensor | None = None, shift: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns what to `convolve` with for `call(inputs) * factor + shift`.

        Args:
          factor: of each filter, [filters], in the variables' dtype; `None` is 1.
          shift: likewise; `None` is 0.

        Returns:
          The kernel, [kernel_size, kernel_size, C, filters], and the bias, [filters], or `None` for
          none, in the variables' dtype.
        """
        kernel = self.normalized_kernel(factor)
        bias = None if self.bias is None else tf.convert_to_tensor(self.bias.value)
        if factor is not None and bias is not None:
            bias = bias * factor
        if shift is not None:
            bias = shift if bias is None else bias + shift
        return kernel, bias

    def normalized_kernel(self, factor: tf.Tensor | None = None) -> tf.Tensor:
        """Returns `w * factor`, [kernel_size, kernel_size, C, filters], in the variables' dtype."""
        fixed = (_fixed_kernels.get() or {}).get(self)
        if fixed is not None:
            fixed = tf.convert_to_tensor(fixed)
            return fixed if factor is None else fixed * factor
        scale = tf.convert_to_tensor(self.scale.value)
        scale = scale if factor is None else scale * factor
        [kernel] = _normalize_at_once(tf.convert_to_tensor(self.kernel.value), scale)
        return kernel

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the output for that of an input."""
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "use_bias": self.use_bias,
            "initial_scale": self.initial_scale,
        }


def convolve(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None = None,
    strides: int = 1,
    padding: str | Sequence[Sequence[int]] = "SAME",
) -> tf.Tensor:
    """Returns the convolution plus the bias, in the dtype of the inputs.

    Kernels and biases are made in the variables' own precision, also where the images are in half.
    """
    outputs = tf.nn.conv2d(inputs, tf.cast(kernel, inputs.dtype), strides, padding)
    return outputs if bias is None else tf.nn.bias_add(outputs, tf.cast(bias, inputs.dtype))


@tf.custom_gradient
def _normalize_at_once(*tensors: tf.Tensor) -> tuple[list[tf.Tensor], Callable]:
    # The gradient by hand: a third of the operations, and one call for all layers.
    number = len(tensors) // 2
    kernels, scales = tensors[:number], tensors[number:]
    normalized = map_in_groups(_normalize_kernel, list(zip(kernels, scales, strict=True)))
    for each, kernel in zip(normalized, kernels, strict=True):
        each.set_shape(kernel.shape)

    def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
        rows = list(zip(kernels, scales, upstream, strict=True))
        by_kernels, by_scales = zip(*map_in_groups(_gradient_of_normalized, rows), strict=True)
        for by, variable in zip((*by_kernels, *by_scales), tensors, strict=True):
            by.set_shape(variable.shape)
        return [*by_kernels, *by_scales]

    return normalized, gradient


def _normalize_kernel(kernel: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    return kernel * (scale * _inverse_norm(kernel))


def _gradient_of_normalized(
    kernel: tf.Tensor, scale: tf.Tensor, upstream: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    inverse_norm = _inverse_norm(kernel)
    by_scale = inverse_norm * tf.reduce_sum(upstream * kernel, [0, 1, 2])
    return scale * inverse_norm * (upstream - kernel * (by_scale * inverse_norm)), by_scale


def _inverse_norm(kernel: tf.Tensor) -> tf.Tensor:
    # A filter of zeros has no direction: the small number makes it stay zero.
    return tf.math.rsqrt(tf.reduce_sum(tf.square(kernel), [0, 1, 2]) + 1e-30)
