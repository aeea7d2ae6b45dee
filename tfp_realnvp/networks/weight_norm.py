"""Weight normalization and convolution, as pure functions."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfp_realnvp.internal.traced_once import traced_once

__all__ = ["convolve", "weight_norm"]


@traced_once
def weight_norm(kernel: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    r"""Returns kernels whose filters have the norms `scale`.

    ```
    w[..., k] = scale[k] * kernel[..., k] / ||kernel[..., k]||
    ```

    Kernels of one shape may be stacked along leading axes: the norm of a filter is taken over the
    axes of `kernel` that `scale` does not have.

    Args:
      kernel: [N₁, ..., h, w, C, K], floating, with any number of axes N and of axes before K.
      scale: [N₁, ..., K], of the same dtype.

    Returns:
      A tensor like `kernel`. A filter of zeros stays zero.

    #### References

    Salimans, Kingma: Weight Normalization, eq. 2; used throughout Real NVP (section 3.7).
    """
    axes = list(range(scale.shape.rank - 1, kernel.shape.rank - 1))
    square = tf.reduce_sum(tf.square(kernel), axes, keepdims=True)
    # The small number keeps a filter of zeros at zero.
    factor = tf.reshape(scale, square.shape) * tf.math.rsqrt(square + 1e-30)
    return kernel * factor


def convolve(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None = None,
    strides: int = 1,
    padding: str | Sequence[Sequence[int]] = "SAME",
) -> tf.Tensor:
    """Returns the 2-D convolution of images with a kernel, plus a bias, in the inputs' dtype.

    Kernels and biases, float32 in a network of half precision, are cast.

    Args:
      inputs: [B, H, W, C].
      kernel: [h, w, C, K]; or [C, K], a 1×1 kernel, for strides of 1.
      bias: [K].
      strides, padding: as in `tf.nn.conv2d`.

    Returns:
      A tensor [B, H', W', K].
    """
    kernel = tf.cast(kernel, inputs.dtype)
    if kernel.shape.rank == 2:
        kernel = tf.reshape(kernel, [1, 1, *kernel.shape])
    outputs = tf.nn.conv2d(inputs, kernel, strides, padding)
    return outputs if bias is None else tf.nn.bias_add(outputs, tf.cast(bias, inputs.dtype))
