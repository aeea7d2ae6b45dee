"""The paper's conditioner: a weight-normalized convolutional ResNet with skip connections."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import replicas, validation
from tfp_realnvp.internal.checkerboard import changed_in_cell, put_changed, take_changed
from tfp_realnvp.internal.memoize import traced_once
from tfp_realnvp.networks.attention import SelfAttention
from tfp_realnvp.networks.conditioner import Conditioner
from tfp_realnvp.networks.functional import (
    batch_norm,
    convolve,
    inverse_bessel,
    weight_norm,
)

# For smaller images, computing all positions is faster than selecting half of them.
_MIN_HALVED_POSITIONS = 128
# For smaller maps, plain operations are faster than oneDNN's FusedBatchNorm, which starts threads.
_MAX_SMALL_SIZE = 1024


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class ConvResNet(Conditioner):
    r"""Residual blocks of 3×3 convolutions, each with a 1×1 skip connection to the output.

    ```
    input:   x -> BN, concatenated with its negative, ReLU, (the board,) 3×3 convolution -> h
    block:   h -> h + conv(ReLU(BN(conv(ReLU(BN(h))))))
    output:  sum of 1×1 convolutions of the first h and of the h of each block -> BN, ReLU, 1×1
    ```

    Every convolution is weight-normalized, and batch normalization has no scale. In a checkerboard
    coupling, half of the input is zero. The network then multiplies the normalized input by 2,
    appends the board as a channel, and sets the output to zero at kept positions.

    A linear map adds a condition vector to the first h, and a 3×3 convolution a condition image.
    With `num_heads`, self-attention over all positions precedes the last batch normalization.

    In inference, convolutions absorb batch normalization. For checkerboard couplings of large
    images, inference computes the last layers only at changed positions.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> network = tfr.ConvResNet(6, num_blocks=2, num_filters=16, checkerboard_parity=0)
    >>> network(tf.ones([2, 8, 8, 3])).shape
    TensorShape([2, 8, 8, 6])
    >>> tuple(network.block_kernels.shape)
    (4, 3, 3, 16, 16)

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, sections 3.7 and 4.1; details
    from the authors' code.
    """

    def __init__(
        self,
        output_channels: int,
        num_blocks: int = 4,
        num_filters: int = 32,
        *,
        num_heads: int = 0,
        output_scale: float = 0.1,
        momentum: float = 0.9,
        epsilon: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        """Constructs the network.

        Args:
          num_blocks: B, number of residual blocks.
          num_filters: F, number of filters of each convolution except the last.
          num_heads: number of self-attention heads; 0 for none.
          output_scale: initial norm of the last convolution's filters. With a small norm the
            coupling starts near the identity, which makes the first training steps stable.
          momentum: momentum of the moving statistics.
          epsilon: added to the variance.
          output_channels, **kwargs: as in `Conditioner`.

        Raises:
          TypeError, ValueError: if an argument is not a number, or out of range.
        """
        super().__init__(output_channels, **kwargs)
        self.num_blocks = validation.count(num_blocks, "num_blocks", 0, self.name)
        self.num_filters = validation.count(num_filters, "num_filters", 1, self.name)
        expected = f"{self.name}: expected a finite output_scale of at least 0"
        self.output_scale = validation.real(output_scale, lambda x: 0 <= x < math.inf, expected)
        expected = f"{self.name}: expected a momentum in [0, 1)"
        self.momentum = validation.fraction(momentum, expected)
        self.epsilon = validation.positive(epsilon, f"{self.name}: expected a positive epsilon")
        self.num_heads, self.attention = num_heads, None
        if num_heads:
            self.attention = SelfAttention(num_heads, name="attention", **self._nested_options)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs of `input_shape`, [B, H, W, C]."""
        channels, blocks, filters = input_shape[-1], self.num_blocks, self.num_filters
        doubled = 2 * channels + (self.checkerboard_parity is not None)
        self.input_offset = self._weight("input_offset", [channels])
        self.input_mean = self._statistic("input_moving_mean", [channels], "zeros")
        self.input_variance = self._statistic("input_moving_variance", [channels], "ones")
        self.input_kernel, self.input_scale = self._conv("input", [3, 3, doubled, filters])
        self.input_bias = self._weight("input_bias", [filters])
        if blocks:
            shape = [2 * blocks, 3, 3, filters, filters]
            self.block_kernels, self.block_scales = self._conv("block", shape, stacked=True)
            self.block_biases = self._weight("block_biases", [blocks, filters])
        shape = [blocks + 1, filters, filters]
        self.skip_kernels, self.skip_scales = self._conv("skip", shape, stacked=True)
        self.skip_biases = self._weight("skip_biases", [blocks + 1, filters])
        # One row per normalization: two per block, then one for the output.
        shape = [2 * blocks + 1, filters]
        self.offsets = self._weight("offsets", shape)
        self.moving_means = self._statistic("moving_means", shape, "zeros")
        self.moving_variances = self._statistic("moving_variances", shape, "ones")
        self.output_kernel, self.output_scales = self._conv(
            "output", [filters, self.output_channels], initial_scale=self.output_scale
        )
        self.output_bias = self._weight("output_bias", [self.output_channels])
        self._add_film(1, filters)
        if self.takes_image:
            shape = [3, 3, self.conditional_event_shape[-1], filters]
            self.condition_kernel = self._weight("condition_kernel", shape)
        if self.attention is not None:
            self.attention.build((*input_shape[:-1], filters))

    def _statistic(self, name: str, shape: list[int], initializer: str) -> keras.Variable:
        return self._weight(name, shape, initializer, trainable=False, aggregation="mean")

    def _conv(
        self, name: str, shape: list[int], *, stacked: bool = False, initial_scale: float = 1.0
    ) -> tuple[keras.Variable, keras.Variable]:
        # Weight normalization removes the scale, so any isotropic initializer will do.
        plural = "s" if stacked else ""
        kernel = self._weight(f"{name}_kernel{plural}", shape, "random_normal")
        shape = [shape[0], shape[-1]] if stacked else [shape[-1]]
        initializer = keras.initializers.Constant(initial_scale)
        return kernel, self._weight(f"{name}_scale{plural}", shape, initializer)

    @property
    def weight_norm_scales(self) -> list[keras.Variable]:
        """The norms of all filters. `FlowModel` applies its L2 penalty to these norms."""
        blocks = [self.block_scales] if self.num_blocks else []
        return [self.input_scale, *blocks, self.skip_scales, self.output_scales]

    def call(
        self,
        inputs: tf.Tensor,
        training: bool = False,
        conditional_input: tf.Tensor | None = None,
        statistics: replicas.Statistics = replicas.LOCAL_STATISTICS,
    ) -> tf.Tensor:
        """Returns the parameters [B, H, W, K] for the kept half [B, H, W, C].

        During training, normalizes using batch statistics and updates the moving statistics.
        """
        stacked_norms = _values(self.offsets, self.moving_means, self.moving_variances)
        norms = list(zip(*map(tf.unstack, stacked_norms), strict=True))
        skips = weight_norm(*_values(self.skip_kernels, self.skip_scales))
        bias = tf.add_n(tf.unstack(self.skip_biases.value))
        if not training:
            factors, shifts = map(tf.unstack, _affine_of(*stacked_norms, epsilon=self.epsilon))
        # Attention separates the skip connections from the normalization, which prevents folding.
        folds_output = not training and self.attention is None
        if folds_output:
            skips, bias = skips * factors[-1], bias * factors[-1] + shifts[-1]
        skips = tf.unstack(skips)
        options: dict[str, Any] = {"training": training, "epsilon": self.epsilon}
        if training:
            options |= {"statistics": statistics, "bessel": inverse_bessel(inputs)}
        moments = []

        def normalize(x: tf.Tensor, norm: Sequence[tf.Tensor]) -> tf.Tensor:
            x, *of_batch = batch_norm(x, *norm, **options)
            moments.append(of_batch)
            return x

        def activate(x: tf.Tensor, i: int, is_normalized: bool = False) -> tf.Tensor:
            if not is_normalized and not training and _is_small(x):
                wide = tf.cast(x, factors[i].dtype)
                x = tf.cast(wide * factors[i] + shifts[i], x.dtype)
            elif not is_normalized:
                x = normalize(x, norms[i])
            return tf.nn.relu(x)

        x = self._both_signs(inputs, normalize if training else None)
        kernel = weight_norm(*_values(self.input_kernel, self.input_scale))
        [input_bias] = self._shifted_biases(conditional_input, self.input_bias)
        h = convolve(self.with_board(tf.nn.relu(x)), kernel, input_bias)
        if self.takes_image:
            condition = tf.cast(self.required(conditional_input), self.compute_dtype)
            h += convolve(condition, self.condition_kernel.value)
        # Collect inputs and kernels of the 1×1 convolutions that the output sums.
        terms = [(h, skips[0])]
        if self.num_blocks:
            kernels = tf.unstack(weight_norm(*_values(self.block_kernels, self.block_scales)))
            biases = tf.unstack(self.block_biases.value)
        for i in range(self.num_blocks):
            first, second, skip = kernels[2 * i], kernels[2 * i + 1], skips[i + 1]
            x = activate(h, 2 * i)
            if training:
                x = activate(convolve(x, first), 2 * i + 1)
            else:
                x = convolve(x, first * factors[2 * i + 1], shifts[2 * i + 1])
                x = activate(x, 2 * i + 1, is_normalized=True)
            if i == self.num_blocks - 1 and _skip_is_joined(h, self.num_filters):
                terms[-1] = (h, skips[i] + skip)
                joined, joined_bias = _joined_skip(second, biases[i], skip)
                terms.append((x, joined))
                bias += joined_bias
            else:
                x = convolve(x, second, biases[i])
                if not training:
                    # Keep TensorFlow from fusing the convolution with the addition of h. With
                    # several threads, the fused oneDNN kernel (up to TensorFlow 2.21) gives wrong
                    # results if other operations also use h.
                    x = tf.ensure_shape(x, x.shape)
                # The gradient of `add_n` is cheaper than the gradient of `+`, which can broadcast.
                h = tf.add_n([h, x])
                terms.append((h, skip))
        kernel = weight_norm(*_values(self.output_kernel, self.output_scales))
        output_conv = kernel, *_values(self.output_bias)
        if folds_output and self.checkerboard_parity is not None and _is_halved(inputs):
            halves = _sum_at_changed_positions(terms, bias, self.checkerboard_parity)
            halves = [activate(half, -1, is_normalized=True) for half in halves]
            outputs = [convolve(half, *output_conv) for half in halves]
            return put_changed(outputs, self.checkerboard_parity)
        total = convolve(*terms[-1], bias)
        if self.num_blocks:
            others = [convolve(*term) for term in terms[:-1]]
            # In inference, TensorFlow can fuse the last convolution with bias, one addition and
            # ReLU.
            total = tf.add_n([total, *others] if training else [total, tf.add_n(others)])
        if self.attention is not None:
            total = self.attention(total)
        x = activate(total, -1, is_normalized=folds_output)
        if training:
            of_inputs, *others = moments
            stacks = map(tf.stack, zip(*others, strict=True))
            moving = self.input_mean, self.input_variance, self.moving_means, self.moving_variances
            for variable, batch in zip(moving, (*of_inputs, *stacks), strict=True):
                before = tf.convert_to_tensor(variable.value)
                replicas.assign(variable, before + (1 - self.momentum) * (batch - before))
        return self.at_changed_positions(convolve(x, *output_conv))

    def _both_signs(
        self, inputs: tf.Tensor, normalize: Callable[..., tf.Tensor] | None
    ) -> tf.Tensor:
        """Returns inputs and negatives, normalized by `normalize` or by the moving statistics."""
        norm = _values(self.input_offset, self.input_mean, self.input_variance)
        factor = 1.0 if self.checkerboard_parity is None else 2.0
        if normalize is not None:
            # For few channels, fused normalization is slow in half precision.
            x = normalize(tf.cast(inputs, self.variable_dtype), norm)
            return tf.cast(factor * tf.concat([x, -x], axis=-1), inputs.dtype)
        # A single 1×1 convolution both normalizes the inputs and appends their negatives.
        scale, shift = _affine_of(*norm, epsilon=self.epsilon)
        kernel, shift = factor * tf.linalg.diag(scale), factor * shift
        return convolve(inputs, *(tf.concat([value, -value], axis=-1) for value in (kernel, shift)))


def _values(*variables: keras.Variable) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(variable.value) for variable in variables]


@traced_once
def _joined_skip(kernel: tf.Tensor, bias: tf.Tensor, skip: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Returns kernel and bias of a 3×3 convolution followed by a 1×1 skip connection.

    Only the last skip connection S uses `h + conv(x)`, and S is linear: `S(h + conv(x)) = S h + S
    conv(x)`. The result is the convolution `S conv(x)`. The caller adds S to the kernel of the
    previous skip connection, whose input is h.
    """
    return tf.tensordot(kernel, skip, 1), tf.linalg.matvec(skip, bias, transpose_a=True)


def _skip_is_joined(images: tf.Tensor, num_filters: int) -> bool:
    # To join two convolutions, their kernels are multiplied, which costs as much as a 1×1
    # convolution at 9 * num_filters positions. Five images of 2 * num_filters positions repay it.
    positions = images.shape[1:3].num_elements()
    return positions is not None and positions >= 2 * num_filters


def _affine_of(
    offset: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor, *, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the factor and shift of batch normalization with moving statistics."""
    factor = tf.math.rsqrt(variance + epsilon)
    return factor, offset - mean * factor


def _is_small(images: tf.Tensor) -> bool:
    """Returns whether plain operations normalize images [B, H, W, C] faster than `batch_norm`."""
    size = images.shape[1:].num_elements()
    return size is not None and size <= _MAX_SMALL_SIZE


def _is_halved(images: tf.Tensor) -> bool:
    """Returns whether it pays off to compute only changed positions of images [B, H, W, C]."""
    sides = images.shape[1:3]
    is_large = sides.is_fully_defined() and sides.num_elements() >= _MIN_HALVED_POSITIONS
    return is_large and all(side % 2 == 0 for side in sides)


def _sum_at_changed_positions(
    terms: list[tuple[tf.Tensor, tf.Tensor]], bias: tf.Tensor, parity: int
) -> list[tf.Tensor]:
    """Adds convolutions and a bias, only at the positions that the coupling transforms."""
    # One convolution of concatenated feature maps replaces all 1×1 convolutions.
    maps, kernels = zip(*(term for term in terms if term[1].shape.rank == 2), strict=True)
    kernel = tf.concat(kernels, axis=0)
    half_maps = zip(*(take_changed(feature_map, parity) for feature_map in maps), strict=True)
    inputs = [tf.concat(feature_maps, axis=-1) for feature_maps in half_maps]
    if len(maps) == len(terms):
        return [convolve(half_input, kernel, bias) for half_input in inputs]
    images, wide_kernel = terms[-1]
    halves = []
    for half_input, (i, j) in zip(inputs, changed_in_cell(parity), strict=True):
        # This padding, with a stride of 2, centers the 3×3 kernel at changed positions.
        padding = [[0, 0], [1 - i, i], [1 - j, j], [0, 0]]
        half = convolve(images, wide_kernel, bias, strides=2, padding=padding)
        halves.append(half + convolve(half_input, kernel))
    return halves
