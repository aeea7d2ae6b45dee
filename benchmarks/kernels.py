"""Other ways to compute the parts of a residual block: `python -m benchmarks.kernels`.

What is in a block of the size `small`, at full resolution and at half of it, batch 64, and what
could take its place. Milliseconds, the median of 30 calls, each with the cost of a call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tfp_realnvp.masks import CheckerboardMask
from tfp_realnvp.networks import BatchNorm
from tfp_realnvp.networks.weight_norm_conv import convolve

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

    def skip_sum(maps: Sequence[tf.Tensor] = maps) -> tf.Tensor:
        return sum(convolve(h, k, bias) for h, k in zip(maps, skips, strict=False))

    def one_skip(maps: Sequence[tf.Tensor] = maps) -> tf.Tensor:
        kernel = tf.concat(skips[: len(maps)], axis=2)
        return convolve(tf.concat(maps, axis=-1), kernel, bias)

    # The last 3x3 convolution is of the first map here, and adds to the last but one.
    def end() -> tf.Tensor:
        return skip_sum([*maps[:-1], maps[-2] + convolve(x, kernel, bias)])

    def end_joined() -> tf.Tensor:
        joined = tf.tensordot(kernel, skips[-1][0, 0], 1)
        return skip_sum(maps[:-1]) + convolve(x, joined, bias)

    def end_of_half() -> tf.Tensor:
        joined = tf.tensordot(kernel, skips[-1][0, 0], 1)
        mask = CheckerboardMask()
        each = zip(mask.changed_in_cell, *map(mask.take_changed, maps[:-1]), strict=True)
        return tf.stack(
            [
                one_skip(taken)
                + convolve(x, joined, bias, 2, [[0, 0], [1 - i, i], [1 - j, j], [0, 0]])
                for (i, j), *taken in each
            ]
        )

    image_channels = random(_BATCH, side, side, 3 * channels // 32)
    norm = BatchNorm()
    norm.build(image_channels.shape)

    def of_few_channels(normalize: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
        inputs = tf.convert_to_tensor(image_channels)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = normalize(inputs)
        return tape.gradient(outputs, inputs, output_gradients=inputs)

    def fused(inputs: tf.Tensor) -> tf.Tensor:
        s = tf.ones([inputs.shape[-1]])
        return tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=s, offset=s, mean=s, variance=s, is_training=True
        ).y

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
        "sum of five 1x1 convolutions": skip_sum,
        "  the same as one convolution of all maps": one_skip,
        "3x3 convolution, sum, sum of five 1x1 convolutions": end,
        "  the same with the last one within the 3x3 convolution": end_joined,
        "  and at half of the positions": end_of_half,
        "normalisation of few channels, and its gradient": lambda: of_few_channels(fused),
        "  the same by rows": lambda: of_few_channels(lambda x: norm(x, training=True)),
        "ReLU": lambda: tf.nn.relu(x),
        "sum of two": lambda: x + upstream,
    }


if __name__ == "__main__":
    main()
