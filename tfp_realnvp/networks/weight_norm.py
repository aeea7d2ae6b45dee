"""Weight normalization: a pure function, and a convolution that uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import validation

__all__ = ["WeightNormConv2D", "convolve", "weight_norm"]


def weight_norm(kernel: tf.Tensor, scale: tf.Tensor) -> tf.Tensor:
    r"""Returns kernels whose filters have the norms `scale`.

    ```
    w[..., k] = scale[k] * kernel[..., k] / ||kernel[..., k]||
    ```

    Several kernels of one shape may be stacked along leading axes: the norm of a filter is taken
    over the axes of `kernel` that `scale` does not have.

    #### Example

    >>> import tensorflow as tf
    >>> weight_norm(tf.constant([[3.0], [4.0]]), tf.constant([10.0])).numpy().ravel().tolist()
    [6.0, 8.0]
    >>> weight_norm(tf.random.normal([7, 3, 3, 16, 32]), tf.ones([7, 32])).shape
    TensorShape([7, 3, 3, 16, 32])

    Args:
      kernel: [N₁, ..., h, w, C, K], floating; any number of leading axes N, and of axes before K.
      scale: [N₁, ..., K], of the same dtype.

    Returns:
      A tensor like `kernel`. A filter of zeros stays zero.

    #### References

    Salimans, Kingma: Weight Normalization, eq. 2; used throughout Real NVP (section 3.7).
    """
    axes = list(range(scale.shape.rank - 1, kernel.shape.rank - 1))
    square = tf.reduce_sum(tf.square(kernel), axes, keepdims=True)
    # The small number keeps a filter of zeros, which has no direction, at zero.
    factor = tf.reshape(scale, tf.shape(square)) * tf.math.rsqrt(square + 1e-30)
    return kernel * factor


def convolve(
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None = None,
    strides: int = 1,
    padding: str | Sequence[Sequence[int]] = "SAME",
) -> tf.Tensor:
    """Returns the 2-D convolution of images with a kernel, plus a bias, in the inputs' dtype.

    Kernels and biases are float32 variables also where a network computes in half precision.

    Args:
      inputs: [B, H, W, C].
      kernel: [h, w, C, K]; or [C, K], a 1×1 kernel, for strides of 1.
      bias: [K].
      strides: as in `tf.nn.conv2d`.
      padding: as in `tf.nn.conv2d`.

    Returns:
      A tensor [B, H', W', K].
    """
    kernel = tf.cast(kernel, inputs.dtype)
    if kernel.shape.rank == 2:
        # A matrix product: its gradient is faster than that of a convolution, above all under XLA.
        outputs = tf.matmul(tf.reshape(inputs, [-1, kernel.shape[0]]), kernel)
        if bias is not None:
            outputs = tf.nn.bias_add(outputs, tf.cast(bias, inputs.dtype))
        sides = inputs.shape[1:3]
        if sides.is_fully_defined():
            return tf.reshape(outputs, [-1, *sides, kernel.shape[1]])
        return tf.reshape(outputs, tf.concat([tf.shape(inputs)[:3], kernel.shape[1:]], axis=0))
    outputs = tf.nn.conv2d(inputs, kernel, strides, padding)
    return outputs if bias is None else tf.nn.bias_add(outputs, tf.cast(bias, inputs.dtype))


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class WeightNormConv2D(keras.layers.Layer):
    r"""A 2-D convolution, stride 1 and padding 'same', with weight normalization.

    ```
    y = conv(x, weight_norm(kernel, scale)) + bias
    ```

    The scale starts at `initial_scale`: with 1, an input whose elements have a mean square of 1
    gives an output whose elements have about the same.

    #### Example

    >>> import tensorflow as tf
    >>> layer = WeightNormConv2D(8, 3)
    >>> layer(tf.ones([2, 5, 5, 3])).shape, len(layer.trainable_variables)
    (TensorShape([2, 5, 5, 8]), 3)

    #### References

    Salimans, Kingma: Weight Normalization, eq. 2; used throughout Real NVP (section 3.7).
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
          initial_scale: initial norm of each filter.
          **kwargs: `name`, `dtype`, as in `keras.layers.Layer`.

        Raises:
          ValueError: if a number is out of range.
          TypeError: if an argument is not a number, or `use_bias` is not a bool.
        """
        super().__init__(**kwargs)
        validation.flag(use_bias, f"{self.name}: expected a bool as use_bias")
        validation.finite(
            initial_scale, 0, f"{self.name}: expected a finite initial_scale of at least 0"
        )
        self.filters = validation.integer(
            filters, 1, f"{self.name}: expected filters of at least 1"
        )
        self.kernel_size = validation.integer(
            kernel_size, 1, f"{self.name}: expected a kernel_size of at least 1"
        )
        self.use_bias = use_bias
        self.initial_scale = initial_scale
        self.scale = self.bias = None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs of `input_shape`, [B, H, W, C]."""
        shape = (self.kernel_size, self.kernel_size, input_shape[-1], self.filters)
        # Only the direction counts, so any isotropic initializer will do.
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

    @property
    def weight_norm_scales(self) -> list[keras.Variable]:
        """The scales, on which `FlowModel` puts its L2 penalty."""
        return [self.scale]

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns [B, H, W, filters] for inputs [B, H, W, C]."""
        bias = None if self.bias is None else tf.convert_to_tensor(self.bias.value)
        return convolve(inputs, self.normalized_kernel(), bias)

    def normalized_kernel(self) -> tf.Tensor:
        """Returns the kernel of the convolution, [kernel_size, kernel_size, C, filters]."""
        kernel, scale = (tf.convert_to_tensor(v.value) for v in (self.kernel, self.scale))
        return weight_norm(kernel, scale)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the output for that of an input."""
        return (*input_shape[:-1], self.filters)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config`."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "use_bias": self.use_bias,
            "initial_scale": self.initial_scale,
        }
