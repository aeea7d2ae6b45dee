"""Other ways to compute the parts of a residual block: `python -m benchmarks.kernels`.

What is in a block of the size `small`, at full resolution and at half of it, batch 64, and what
could take its place. Milliseconds, the median of 30 calls, each with the cost of a call.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

__all__ = ["main"]

_BATCH, _BLOCKS = 64, 4


def main() -> None:
    """Measures and prints."""
    for dtype in (tf.bfloat16, tf.float32):
        for side, channels in ((32, 32), (16, 64)):
            print(f"{dtype.name}, {side}x{side}, {channels} maps")
            for name, function in _alternatives(dtype, side, channels).items():
                print(f"  {name:58s} {1e3 * _seconds(function):7.2f}", flush=True)


def _seconds(function: Callable[[], tf.Tensor]) -> float:
    compiled = tf.function(lambda: tf.reduce_max(function()[0]))
    times = []
    for _ in range(35):
        start = time.perf_counter()
        compiled().numpy()
        times.append(time.perf_counter() - start)
    return float(np.median(times[5:]))


def _alternatives(dtype: tf.DType, side: int, channels: int) -> dict[str, Callable[[], tf.Tensor]]:
    def random(*shape: int) -> tf.Variable:
        # Variables, for constants would be computed with before the clock runs.
        return tf.Variable(tf.cast(0.1 * tf.random.normal(shape), dtype), trainable=False)

    image = (_BATCH, side, side, channels)
    maps = [random(*image) for _ in range(_BLOCKS + 1)]
    x, upstream = maps[0], maps[1]
    kernel = random(3, 3, channels, channels)
    skips = [random(1, 1, channels, channels) for _ in maps]
    bias, statistic = random(channels), tf.Variable(tf.ones([channels]))
    same = {"strides": [1, 1, 1, 1], "padding": "SAME"}

    def conv(x: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv2d(x, kernel, 1, "SAME")

    def conv_norm() -> tf.Tensor:
        s = tf.convert_to_tensor(statistic)
        normed = tf.raw_ops.FusedBatchNormV3(
            x=conv(x, kernel), scale=s, offset=s, mean=s, variance=s, is_training=False
        )
        return tf.nn.relu(normed.y)

    def patches() -> tf.Tensor:
        patches = tf.image.extract_patches(
            x, [1, 3, 3, 1], [1, 1, 1, 1], [1, 1, 1, 1], padding="SAME"
        )
        columns = tf.reshape(patches, [-1, 9 * channels])
        return tf.matmul(columns, tf.reshape(upstream, [-1, channels]), transpose_a=True)

    def half(x: tf.Tensor) -> tf.Tensor:
        rows = tf.reshape(x, [_BATCH, side // 2, 2, side // 2, 2 * channels])
        return tf.concat([rows[:, :, 0, :, :channels], rows[:, :, 1, :, channels:]], axis=1)

    def skip_sum() -> tf.Tensor:
        each = zip(maps, skips, strict=True)
        return tf.nn.relu(sum(tf.nn.bias_add(conv(h, k), bias) for h, k in each))

    def one_skip(of: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        joined = tf.concat([of(h) for h in maps], axis=-1)
        return tf.nn.relu(tf.nn.bias_add(conv(joined, tf.concat(skips, axis=2)), bias))

    return {
        "3x3 convolution": lambda: conv(x, kernel),
        "its gradient by the input": lambda: tf.raw_ops.Conv2DBackpropInput(
            input_sizes=image, filter=kernel, out_backprop=upstream, **same
        ),
        "  the same as a convolution with the kernel turned": lambda: conv(
            upstream, tf.transpose(kernel[::-1, ::-1], [0, 1, 3, 2])
        ),
        "its gradient by the kernel": lambda: tf.raw_ops.Conv2DBackpropFilter(
            input=x, filter_sizes=kernel.shape, out_backprop=upstream, **same
        ),
        "  the same as a matrix product of patches": patches,
        "3x3 convolution, normalisation, ReLU": conv_norm,
        "  the same with the normalisation in kernel and bias": lambda: tf.nn.relu(
            tf.nn.bias_add(conv(x, kernel), bias)
        ),
        "sum of five 1x1 convolutions, ReLU": skip_sum,
        "  the same as one convolution of all maps": lambda: one_skip(tf.identity),
        "  the same at half of the positions": lambda: one_skip(half),
        "ReLU": lambda: tf.nn.relu(x),
        "sum of two": lambda: x + upstream,
    }


if __name__ == "__main__":
    main()
