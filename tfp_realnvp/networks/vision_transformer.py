"""A vision transformer as conditioner, for images of one size."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import validation
from tfp_realnvp.networks.conditioner import Conditioner
from tfp_realnvp.networks.functional import layer_norm, modulated

_EPSILON = 1e-6


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class VisionTransformer(Conditioner):
    r"""A vision transformer with one token per position. The output starts at zero.

    ```
    input:   x -> dense(x) + embedding of the position -> h
    block:   h -> h + attention(norm(h));  h -> h + dense(gelu(dense(norm(h)))), with 4 F units
    output:  dense(norm(h))
    ```

    `norm` is layer normalization, and `gelu` the tanh approximation of GELU. The position
    embeddings are learned, so the network takes images of one size only. A linear map of the
    condition, a vector or an image, is added to the first h.

    In half precision, sums, normalizations, softmax and the last layer use full precision.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> network = tfr.VisionTransformer(6, num_blocks=2, num_filters=16, num_heads=4)
    >>> network(tf.ones([5, 4, 8, 3])).shape, tuple(network.mlp1_kernels.shape)
    (TensorShape([5, 4, 8, 6]), (2, 16, 64))

    #### References

    Dosovitskiy et al.: An image is worth 16x16 words, section 3.1.
    Kolesnikov, Pinto, Tschannen: Jet, for vision transformers in couplings.
    """

    _uses_board = False

    def __init__(
        self,
        output_channels: int,
        num_blocks: int = 2,
        num_filters: int = 512,
        *,
        num_heads: int = 8,
        **kwargs: Any,
    ) -> None:
        """Constructs the network.

        Args:
          num_blocks: number of transformer blocks.
          num_filters: F, size of a token.
          num_heads: number of attention heads, a divisor of `num_filters`.
          output_channels, **kwargs: as in `Conditioner`, without `checkerboard_parity`.

        Raises:
          TypeError, ValueError: if an argument is not a number, or out of range.
        """
        super().__init__(output_channels, **kwargs)
        self.num_blocks = validation.count(num_blocks, "num_blocks", 1, self.name)
        self.num_filters = validation.count(num_filters, "num_filters", 1, self.name)
        self.num_heads = validation.count(num_heads, "num_heads", 1, self.name)
        expected = f"{self.name}: expected num_filters to be a multiple of num_heads"
        is_multiple = self.num_filters % self.num_heads == 0
        validation.require(is_multiple, expected, (self.num_filters, self.num_heads))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs [B, H, W, C]; B may be `None`."""
        _, height, width, channels = input_shape
        expected = f"{self.name}: expected a known height and width, for the embedding of positions"
        validation.require(None not in (height, width), expected, tuple(input_shape))
        filters, norms = self.num_filters, 2 * self.num_blocks + 1
        self.sides = height, width
        lecun = keras.initializers.LecunNormal()
        self.input_kernel = self._weight("input_kernel", [channels, filters], lecun)
        self.input_bias = self._weight("input_bias", [filters])
        normal = keras.initializers.RandomNormal(stddev=filters**-0.5)
        self.position_embedding = self._weight("position_embedding", [*self.sides, filters], normal)
        # Two normalizations per block, and one for the output.
        self.norm_scales = self._weight("norm_scales", [norms, filters], "ones")
        self.norm_offsets = self._weight("norm_offsets", [norms, filters])
        # One kernel computes queries, keys and values, initialized like three separate kernels.
        self.qkv_kernels, self.qkv_biases = self._stack("qkv", filters, filters, copies=3)
        self.head_kernels, self.head_biases = self._stack("head", filters, filters)
        self.mlp1_kernels, self.mlp1_biases = self._stack("mlp1", filters, 4 * filters)
        self.mlp2_kernels, self.mlp2_biases = self._stack("mlp2", 4 * filters, filters)
        self.output_kernel = self._weight("output_kernel", [filters, self.output_channels])
        self.output_bias = self._weight("output_bias", [self.output_channels])
        if self.conditional_event_shape is not None:
            shape = [self.conditional_event_shape[-1], filters]
            self.condition_kernel = self._weight("condition_kernel", shape)

    def _stack(
        self, name: str, fan_in: int, fan_out: int, copies: int = 1
    ) -> tuple[keras.Variable, keras.Variable]:
        """Returns the stacked kernels and stacked biases of one dense layer per block."""
        # Keras initializers would compute a wrong fan-in and fan-out for a stack of kernels.
        limit = math.sqrt(6 / (fan_in + fan_out))
        glorot, outputs = keras.initializers.RandomUniform(-limit, limit), copies * fan_out
        kernels = self._weight(f"{name}_kernels", [self.num_blocks, fan_in, outputs], glorot)
        return kernels, self._weight(f"{name}_biases", [self.num_blocks, outputs])

    def call(self, inputs: tf.Tensor, conditional_input: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the parameters [B, H, W, K] for the kept half [B, H, W, C]."""
        norm_scales = tf.unstack(self.norm_scales.value)
        norm_offsets = tf.unstack(self.norm_offsets.value)
        qkv, head, mlp1, mlp2 = (
            [tf.unstack(getattr(self, f"{name}_{kind}").value) for kind in ("kernels", "biases")]
            for name in ("qkv", "head", "mlp1", "mlp2")
        )

        def norm(i: int) -> tf.Tensor:
            return layer_norm(h, _EPSILON) * norm_scales[i] + norm_offsets[i]

        def dense(x: tf.Tensor, layer: Sequence[Sequence[tf.Tensor]], i: int) -> tf.Tensor:
            return self._dense(x, layer[0][i], layer[1][i])

        # One matrix product over all tokens is faster than a batch of products.
        rows = tf.reshape(inputs, [-1, inputs.shape[-1]])
        h = self._dense(rows, self.input_kernel.value, self.input_bias.value)
        h = tf.reshape(tf.cast(h, self.variable_dtype), [-1, *self.position_embedding.shape])
        h = modulated(h + self.position_embedding.value, None, self._projected(conditional_input))
        h = tf.reshape(h, [-1, self.num_filters])
        for i in range(self.num_blocks):
            attended = self._attended(dense(norm(2 * i), qkv, i))
            h += tf.cast(dense(attended, head, i), h.dtype)
            x = _gelu(dense(norm(2 * i + 1), mlp1, i))
            h += tf.cast(dense(x, mlp2, i), h.dtype)
        outputs = tf.matmul(norm(-1), self.output_kernel.value) + self.output_bias.value
        return tf.reshape(outputs, [-1, *self.sides, self.output_channels])

    def _dense(self, x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        x, kernel, bias = (tf.cast(value, self.compute_dtype) for value in (x, kernel, bias))
        return tf.nn.bias_add(tf.matmul(x, kernel), bias)

    def _attended(self, qkv: tf.Tensor) -> tf.Tensor:
        """Returns the outputs of all attention heads, [B H W, F], from `qkv`, [B H W, 3 F]."""
        heads, size = self.num_heads, self.num_filters // self.num_heads
        qkv = tf.reshape(qkv, [-1, math.prod(self.sides), 3, heads, size])
        query, key, value = tf.unstack(tf.transpose(qkv, [2, 0, 3, 1, 4]))
        logits = tf.matmul(size**-0.5 * query, key, transpose_b=True)
        weights = tf.nn.softmax(tf.cast(logits, self.variable_dtype))
        attended = tf.matmul(tf.cast(weights, value.dtype), value)
        return tf.reshape(tf.transpose(attended, [0, 2, 1, 3]), [-1, self.num_filters])

    def _projected(self, condition: tf.Tensor | None) -> tf.Tensor | None:
        """Maps the condition linearly to [B, 1, 1, F] or [B, H, W, F], to add it to the tokens."""
        if self.conditional_event_shape is None:
            return None
        kernel = tf.convert_to_tensor(self.condition_kernel.value)
        projected = tf.tensordot(tf.cast(self.required(condition), kernel.dtype), kernel, 1)
        return projected[:, tf.newaxis, tf.newaxis] if self.takes_vector else projected


def _gelu(x: tf.Tensor) -> tf.Tensor:
    """Returns `tf.nn.gelu(x, approximate=True)`, without its slow `tf.pow`."""
    # x / 2 (1 + tanh(u)) = x sigmoid(2 u),   u = sqrt(2 / π) (x + 0.044715 x³)
    slope = 2 * math.sqrt(2 / math.pi)
    return x * tf.sigmoid(x * (slope + slope * 0.044715 * tf.square(x)))
