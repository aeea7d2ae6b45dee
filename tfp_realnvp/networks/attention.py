"""Self-attention over the positions of feature maps."""

import math
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import validation
from tfp_realnvp.networks.functional import layer_norm

_EPSILON = 1e-4


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class SelfAttention(keras.layers.Layer):
    r"""Multi-head self-attention over all positions of feature maps, with a residual connection.

    With the layer-normalized features `n_i` at position i, and N heads h of size D = ceil(F / N),

    ```
    y_i = x_i + sum_h W_h sum_j a_hij V_h n_j
    a_hij = softmax_j((Q_h n_i)ᵀ (K_h n_j) / sqrt(D) - s_h |i - j|)
    ```

    `|i - j|` is the distance between two positions in pixels, and `s_h` is a learned slope.
    Distances replace an embedding of positions, so the layer is equivariant to shifts and takes any
    height and width. W starts at zero, so that the layer starts as the identity.

    Memory and time are quadratic in the number of positions, so use the layer at coarse scales.

    #### References

    Vaswani et al.: Attention is all you need, section 3.2.
    Press, Smith, Lewis: Train short, test long, section 3, for the distance penalty.
    Ho, Chen, Srinivas, Duan, Abbeel: Flow++, section 3.2.2, for attention in couplings.
    """

    def __init__(self, num_heads: int, **kwargs: Any) -> None:
        """Constructs the layer with `num_heads` heads."""
        super().__init__(**kwargs)
        self.num_heads = validation.count(num_heads, "num_heads", 1, self.name)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs of `input_shape`, [B, H, W, F]."""
        filters, heads = input_shape[-1], self.num_heads
        size = math.ceil(filters / heads)
        # With these kernels, queries, keys and values of normalized features have variance 1.
        normal = keras.initializers.RandomNormal(stddev=filters**-0.5)
        shape = 3, filters, heads, size
        self.kernels = self.add_weight(shape, normal, autocast=False, name="kernels")
        self.slopes = self.add_weight([heads], "zeros", autocast=False, name="slopes")
        shape = heads, size, filters
        self.output_kernel = self.add_weight(shape, "zeros", autocast=False, name="output_kernel")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns [B, H, W, F] for inputs [B, H, W, F]."""
        kernels, slopes, output_kernel = (
            tf.convert_to_tensor(variable.value)
            for variable in (self.kernels, self.slopes, self.output_kernel)
        )
        batch, height, width = tf.unstack(tf.shape(inputs)[:3])
        dtype, precise = inputs.dtype, kernels.dtype
        x = tf.cast(layer_norm(tf.cast(inputs, precise), _EPSILON), dtype)
        x = tf.reshape(x, [batch, height * width, inputs.shape[-1]])
        query, key, value = tf.unstack(tf.einsum("bpf,kfhd->kbhpd", x, tf.cast(kernels, dtype)))
        logits = tf.cast(tf.matmul(query, key, transpose_b=True), precise)
        distances = _distances(height, width, precise)
        logits = query.shape[-1] ** -0.5 * logits - slopes[:, None, None] * distances
        attended = tf.matmul(tf.cast(tf.nn.softmax(logits), dtype), value)
        added = tf.einsum("bhpd,hdf->bpf", attended, tf.cast(output_kernel, dtype))
        return inputs + tf.reshape(added, tf.shape(inputs))

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config`."""
        return {**super().get_config(), "num_heads": self.num_heads}


def _distances(height: tf.Tensor, width: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    rows, columns = tf.meshgrid(tf.range(height), tf.range(width), indexing="ij")
    positions = tf.reshape(tf.stack([rows, columns], axis=-1), [-1, 2])
    differences = tf.cast(positions[:, None] - positions, dtype)
    return tf.sqrt(tf.reduce_sum(tf.square(differences), axis=-1))
