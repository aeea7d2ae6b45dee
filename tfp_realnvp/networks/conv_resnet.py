"""The paper's conditioner: a weight-normalized convolutional ResNet with skip connections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_realnvp.internal import replicas, validation
from tfp_realnvp.networks.attention import SelfAttention
from tfp_realnvp.networks.batch_norm import batch_norm
from tfp_realnvp.networks.conditioner import Conditioner, film, shifted
from tfp_realnvp.networks.folded_inference import (
    affine_of,
    has_cells,
    joined_skip,
    put_changed,
    skip_is_joined,
    sum_at_changed_positions,
)
from tfp_realnvp.networks.weight_norm import convolve, weight_norm

__all__ = ["ConvResNet"]


class ResNetWeights(NamedTuple):
    """The weights of a `ConvResNet` as tensors: normalized kernels, stacked over the blocks.

    Attributes:
      input_kernel: [3, 3, 2 C, F], with one more channel for the board.
      input_bias: [F].
      block_kernels: [2 B, 3, 3, F, F], two for each block.
      block_biases: [B, F], biases of the second convolution of each block.
      skip_kernels: [B + 1, F, F], for the first h, then for the h of each block.
      skip_biases: [B + 1, F].
      output_kernel: [F, K].
      output_bias: [K].
    """

    input_kernel: tf.Tensor
    input_bias: tf.Tensor
    block_kernels: tf.Tensor
    block_biases: tf.Tensor
    skip_kernels: tf.Tensor
    skip_biases: tf.Tensor
    output_kernel: tf.Tensor
    output_bias: tf.Tensor


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class ConvResNet(Conditioner):
    r"""Residual blocks of 3×3 convolutions, each with a 1×1 skip connection to the output.

    ```
    input:   x -> BN, concatenated with its negative, ReLU, (the board,) 3×3 convolution -> h
    block:   h -> h + conv(ReLU(BN(conv(ReLU(BN(h))))))
    output:  sum of 1×1 convolutions of the first h and of the h of each block -> BN, ReLU, 1×1
    ```

    Every convolution is weight-normalized; batch normalization has no scale. For a checkerboard
    coupling, half of whose input is zero, the normalized input is doubled, the board is one more
    input channel, and the output is zero where the coupling keeps the image.

    A condition vector shifts the output of each batch normalization but the first, by linear maps.
    A condition image goes through a 3×3 convolution and is added to the first h. With `num_heads`,
    self-attention between all positions precedes the normalization of the output.

    Weights of one kind are one variable for all blocks, with the block as first axis.

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
          num_filters: F, feature maps of each convolution but the last.
          num_heads: heads of the self-attention; 0 for none.
          output_scale: initial norm of the filters of the last convolution. A small norm starts a
            coupling near the identity, so that the first steps of training are stable.
          momentum: momentum of the moving statistics of batch normalization.
          epsilon: added to the variance.
          output_channels, **kwargs: as in `Conditioner`.

        Raises:
          ValueError: if a number is out of range.
          TypeError: if an argument is not a number.
        """
        super().__init__(output_channels, **kwargs)
        self.num_blocks = validation.count(num_blocks, "num_blocks", 0, self.name)
        self.num_filters = validation.count(num_filters, "num_filters", 1, self.name)
        self.num_heads = validation.count(num_heads, "num_heads", 0, self.name)
        self.output_scale = validation.finite(
            output_scale, 0, f"{self.name}: expected a finite output_scale of at least 0"
        )
        self.momentum = validation.momentum(momentum, self.name)
        self.epsilon = validation.positive(epsilon, f"{self.name}: expected a positive epsilon")
        self.attention = None
        if self.num_heads:
            options = {"dtype": self.dtype_policy, "name": "attention"}
            self.attention = SelfAttention(self.num_heads, **options)

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
        # A row for each normalization: two for each block, then one for the output.
        shape = [2 * blocks + 1, filters]
        self.offsets = self._weight("offsets", shape)
        self.moving_means = self._statistic("moving_means", shape, "zeros")
        self.moving_variances = self._statistic("moving_variances", shape, "ones")
        self.output_kernel, self.output_scales = self._conv(
            "output", [filters, self.output_channels], initial_scale=self.output_scale
        )
        self.output_bias = self._weight("output_bias", [self.output_channels])
        if self.takes_vector:
            shape = [*self.conditional_event_shape, 2 * blocks + 1, filters]
            self.condition_kernel = self._weight("condition_kernel", shape)
        elif self.takes_image:
            shape = [3, 3, self.conditional_event_shape[-1], filters]
            self.condition_kernel = self._weight("condition_kernel", shape)
        if self.attention is not None:
            self.attention.build((*input_shape[:-1], filters))

    def _weight(
        self, name: str, shape: list[int], initializer: Any = "zeros", **kwargs: Any
    ) -> keras.Variable:
        # `autocast=False` keeps full precision where the layer computes in half precision.
        return self.add_weight(
            name=name, shape=shape, initializer=initializer, autocast=False, **kwargs
        )

    def _statistic(self, name: str, shape: list[int], initializer: str) -> keras.Variable:
        return self._weight(name, shape, initializer, trainable=False, aggregation="mean")

    def _conv(
        self, name: str, shape: list[int], *, stacked: bool = False, initial_scale: float = 1.0
    ) -> tuple[keras.Variable, keras.Variable]:
        # The filters are normalized, so that any isotropic initializer will do.
        plural = "s" if stacked else ""
        kernel = self._weight(f"{name}_kernel{plural}", shape, "random_normal")
        shape = [shape[0], shape[-1]] if stacked else [shape[-1]]
        initializer = keras.initializers.Constant(initial_scale)
        return kernel, self._weight(f"{name}_scale{plural}", shape, initializer)

    @property
    def weight_norm_scales(self) -> list[keras.Variable]:
        """The norms of all filters, which the L2 penalty of `FlowModel` applies to."""
        blocks = [self.block_scales] if self.num_blocks else []
        return [self.input_scale, *blocks, self.skip_scales, self.output_scales]

    def normalized_weights(self) -> ResNetWeights:
        """Returns the weights as tensors, with normalized kernels."""
        filters = self.num_filters
        if self.num_blocks:
            block_kernels = weight_norm(*_values(self.block_kernels, self.block_scales))
            [block_biases] = _values(self.block_biases)
        else:
            block_kernels = tf.zeros([0, 3, 3, filters, filters], self.variable_dtype)
            block_biases = tf.zeros([0, filters], self.variable_dtype)
        input_bias, skip_biases, output_bias = _values(
            self.input_bias, self.skip_biases, self.output_bias
        )
        return ResNetWeights(
            weight_norm(*_values(self.input_kernel, self.input_scale)),
            input_bias,
            block_kernels,
            block_biases,
            weight_norm(*_values(self.skip_kernels, self.skip_scales)),
            skip_biases,
            weight_norm(*_values(self.output_kernel, self.output_scales)),
            output_bias,
        )

    def call(
        self,
        inputs: tf.Tensor,
        training: bool = False,
        conditional_input: tf.Tensor | None = None,
        statistics: replicas.Statistics = replicas.LOCAL_STATISTICS,
    ) -> tf.Tensor:
        """Returns [B, H, W, output_channels] for the kept half [B, H, W, C], given a condition.

        Args:
          inputs: the kept half of images.
          training: whether to normalize by batch statistics, and to update the moving statistics.
          conditional_input: [B, *conditional_event_shape], if it is declared.
          statistics: the events that batch statistics average over, and their weights.
        """
        if not training:
            return self._inference(inputs, conditional_input)
        weights = self.normalized_weights()
        kernels, biases = map(tf.unstack, (weights.block_kernels, weights.block_biases))
        skips, skip_biases = map(tf.unstack, (weights.skip_kernels, weights.skip_biases))
        norms = iter(zip(*map(tf.unstack, self._norms()), strict=True))
        shifts = iter(self.condition_shifts(conditional_input))
        moved = []

        def normalize(x: tf.Tensor, norm: Sequence[tf.Tensor]) -> tf.Tensor:
            options = {"momentum": self.momentum, "epsilon": self.epsilon}
            x, *moving = batch_norm(x, *norm, training=True, statistics=statistics, **options)
            moved.append(moving)
            return x

        def activate(x: tf.Tensor) -> tf.Tensor:
            return tf.nn.relu(shifted(normalize(x, next(norms)), next(shifts)))

        # The fused normalization of few channels is slow in half precision.
        x = tf.cast(inputs, self.variable_dtype)
        x = normalize(x, _values(self.input_offset, self.input_mean, self.input_variance))
        x = tf.cast(self.input_factor * tf.concat([x, -x], axis=-1), inputs.dtype)
        h = convolve(self.with_board(tf.nn.relu(x)), weights.input_kernel, weights.input_bias)
        h = shifted(h, self.convolved_condition(conditional_input))
        # Inputs, kernels and biases of the convolutions that are summed for the last layers. Each
        # has a bias, so that TensorFlow fuses convolution and sum. `tf.add_n` is faster than `+`,
        # whose gradient computes the shapes of both summands.
        terms = [(h, skips[0], skip_biases[0])]
        for i in range(self.num_blocks):
            x = activate(convolve(activate(h), kernels[2 * i]))
            skip, skip_bias = skips[i + 1], skip_biases[i + 1]
            if i == self.num_blocks - 1 and skip_is_joined(h, self.num_filters):
                terms[-1] = (h, skips[i] + skip, skip_biases[i])
                joined, joined_bias = joined_skip(kernels[2 * i + 1], biases[i], skip)
                terms.append((x, joined, joined_bias + skip_bias))
            else:
                h = tf.add_n([h, convolve(x, kernels[2 * i + 1], biases[i])])
                terms.append((h, skip, skip_bias))
        total = convolve(*terms[0])
        for term in terms[1:]:
            total = tf.add_n([total, convolve(*term)])
        if self.attention is not None:
            total = self.attention(total)
        outputs = convolve(activate(total), weights.output_kernel, weights.output_bias)
        self._assign_statistics(moved)
        return self.at_changed_positions(outputs)

    def _inference(self, inputs: tf.Tensor, conditional_input: tf.Tensor | None) -> tf.Tensor:
        """Returns the output by moving statistics."""
        weights = self.normalized_weights()
        stacked_norms = self._norms()
        factors, shifts = map(tf.unstack, affine_of(*stacked_norms, epsilon=self.epsilon))
        # Even normalizations take h, odd ones the output of the first convolution of a block.
        norms = list(zip(*map(tf.unstack, stacked_norms), strict=True))
        kernels, biases = map(tf.unstack, (weights.block_kernels, weights.block_biases))
        skips, bias = weights.skip_kernels, tf.reduce_sum(weights.skip_biases, axis=0)
        if self.attention is None:
            skips, bias = skips * factors[-1], bias * factors[-1] + shifts[-1]
        skips = tf.unstack(skips)

        def normalize(x: tf.Tensor, norm: Sequence[tf.Tensor]) -> tf.Tensor:
            return batch_norm(x, *norm, training=False, epsilon=self.epsilon).outputs

        condition_shifts = self.condition_shifts(conditional_input)
        h = convolve(self._both_signs(inputs), weights.input_kernel, weights.input_bias)
        h = shifted(h, self.convolved_condition(conditional_input))
        # Maps and kernels of the convolutions whose sum is the input of the output convolution.
        terms = [(h, skips[0])]
        for i in range(self.num_blocks):
            x = tf.nn.relu(shifted(normalize(h, norms[2 * i]), condition_shifts[2 * i]))
            x = convolve(x, kernels[2 * i] * factors[2 * i + 1], shifts[2 * i + 1])
            x = tf.nn.relu(shifted(x, condition_shifts[2 * i + 1]))
            second, skip = kernels[2 * i + 1], skips[i + 1]
            if i == self.num_blocks - 1 and skip_is_joined(h, self.num_filters):
                terms[-1] = (h, skips[i] + skip)
                joined, joined_bias = joined_skip(second, biases[i], skip)
                terms.append((x, joined))
                bias += joined_bias
            else:
                h += convolve(x, second, biases[i])
                terms.append((h, skip))
        output_conv = weights.output_kernel, weights.output_bias
        # Attention needs the sum at all positions, before its normalization.
        is_whole = self.attention is not None or not has_cells(inputs)
        if self.checkerboard_parity is None or is_whole:
            # TensorFlow fuses the last convolution with the bias, the sum and the ReLU.
            total = convolve(*terms[-1], bias)
            if self.num_blocks:
                total += tf.add_n([convolve(*term) for term in terms[:-1]])
            if self.attention is not None:
                total = normalize(self.attention(total), norms[-1])
            x = tf.nn.relu(shifted(total, condition_shifts[-1]))
            return self.at_changed_positions(convolve(x, *output_conv))
        halves = sum_at_changed_positions(terms, bias, self.checkerboard_parity)
        halves = [tf.nn.relu(shifted(half, condition_shifts[-1])) for half in halves]
        outputs = [convolve(half, *output_conv) for half in halves]
        return put_changed(outputs, self.checkerboard_parity)

    def _both_signs(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns the input of the first convolution; its normalization is a 1×1 convolution."""
        variables = _values(self.input_offset, self.input_mean, self.input_variance)
        factor, shift = affine_of(*variables, epsilon=self.epsilon)
        signs = self.input_factor * tf.linalg.diag(factor)
        shift *= self.input_factor
        kernel = tf.concat([signs, -signs], axis=-1)
        x = convolve(inputs, kernel, tf.concat([shift, -shift], axis=-1))
        return self.with_board(tf.nn.relu(x))

    def condition_shifts(self, condition: tf.Tensor | None) -> list[tf.Tensor | None]:
        """Returns the shift of each normalized activation, [B, 1, 1, F], by a condition vector."""
        if not self.takes_vector:
            return [None] * (2 * self.num_blocks + 1)
        kernel = tf.convert_to_tensor(self.condition_kernel.value)
        return film(self.required(condition), kernel, self.compute_dtype)

    def convolved_condition(self, condition: tf.Tensor | None) -> tf.Tensor | None:
        """Returns the term that a condition image adds to the first feature maps, [B, H, W, F]."""
        if not self.takes_image:
            return None
        condition = tf.cast(self.required(condition), self.compute_dtype)
        return convolve(condition, *_values(self.condition_kernel))

    @property
    def input_factor(self) -> float:
        """The factor of the normalized input: 2 for a checkerboard, which masks half of it."""
        return 1.0 if self.checkerboard_parity is None else 2.0

    def _norms(self) -> list[tf.Tensor]:
        return _values(self.offsets, self.moving_means, self.moving_variances)

    def _assign_statistics(self, moved: list[list[tf.Tensor]]) -> None:
        (input_mean, input_variance), *others = moved
        means, variances = map(tf.stack, zip(*others, strict=True))
        replicas.assign(self.input_mean, input_mean)
        replicas.assign(self.input_variance, input_variance)
        replicas.assign(self.moving_means, means)
        replicas.assign(self.moving_variances, variances)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config`."""
        return {
            **super().get_config(),
            "num_blocks": self.num_blocks,
            "num_filters": self.num_filters,
            "num_heads": self.num_heads,
            "output_scale": self.output_scale,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }


def _values(*variables: keras.Variable) -> list[tf.Tensor]:
    return [tf.convert_to_tensor(variable.value) for variable in variables]
