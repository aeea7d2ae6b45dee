"""A convolution of normalised maps that are not kept for its gradient."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.eager import record

from tfp_realnvp.networks.batch_norm import BatchNorm
from tfp_realnvp.networks.weight_norm_conv import convolve

__all__ = ["convolve_normed"]


def convolve_normed(
    norm: BatchNorm | None,
    inputs: tf.Tensor,
    kernel: tf.Tensor,
    bias: tf.Tensor | None = None,
    *,
    training: bool = False,
    renormalize: bool = False,
) -> tf.Tensor:
    """Returns `convolve(relu(norm(inputs)), kernel, bias)`.

    #### Example

    >>> import tensorflow as tf
    >>> norm = BatchNorm()
    >>> norm.build((None, None, None, 16))
    >>> y = convolve_normed(norm, tf.random.normal([2, 4, 4, 16]), tf.ones([1, 1, 16, 1]))
    >>> y.shape, bool(tf.reduce_all(y >= 0))
    (TensorShape([2, 4, 4, 1]), True)

    Args:
      norm: the normalisation, built; `None` leaves it out.
      inputs: [B, H, W, C].
      kernel: [k, k, C, filters].
      bias: [filters], or `None`.
      training: normalise by batch statistics, and update the moving ones.
      renormalize: normalise once more in the gradient, in training, instead of keeping what was
        normalised: of two maps [B, H, W, C] one is left.
    """
    if norm is None or not (training and renormalize):
        normed = inputs if norm is None else norm(inputs, training=training)
        return convolve(tf.nn.relu(normed), kernel, bias)
    offset = tf.convert_to_tensor(norm.offset.value)
    sources = [inputs, offset, kernel] if bias is None else [inputs, offset, kernel, bias]

    def function(inputs: tf.Tensor, offset: tf.Tensor, *filters: tf.Tensor) -> list[tf.Tensor]:
        normed, *batch = norm.by_batch(inputs, offset)
        return [convolve(tf.nn.relu(normed), *filters), *batch]

    with record.stop_recording():
        outputs, *batch = function(*sources)
        norm.move(*batch)

    def gradient(upstream: tf.Tensor) -> list[tf.Tensor]:
        # Not before the gradient arrives. The convolution is not made again: nothing asks for it.
        with tf.control_dependencies([upstream]):
            again = [tf.identity(tensor) for tensor in sources]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(again)
            outputs, *_ = function(*again)
        return tape.gradient(outputs, again, output_gradients=upstream)

    record.record_operation("NormedConvolution", [outputs], sources, gradient)
    return outputs
