"""A conditioner for vectors: a residual network of dense layers."""

import math
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import validation
from tfp_realnvp.internal.initial_seeds import initial_seed
from tfp_realnvp.networks.conditioner import Conditioner
from tfp_realnvp.networks.functional import modulated


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class DenseResNet(Conditioner):
    r"""Residual blocks of two dense layers. The output starts at zero.

    ```
    input:   x -> dense -> h
    block:   h -> h + dense(act(dense(act(h))))
    output:  dense(act(h))
    ```

    The output layer and the biases start at zero, except for the first layer's biases. Other
    weights start as normal random numbers of variance 1 / fan-in.

    A condition vector scales and shifts the input of each activation, `x -> (1 + a) x + b`, with a
    and b linear in the condition.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> network = tfr.DenseResNet(6, num_blocks=2, num_filters=16)
    >>> network(tf.ones([5, 3])).shape, tuple(network.block_kernels.shape)
    (TensorShape([5, 6]), (4, 16, 16))

    #### References

    He, Zhang, Ren, Sun: Identity mappings in deep residual networks, figure 4e, for the blocks.
    Durkan, Bekasov, Murray, Papamakarios: Neural spline flows, appendix B.1, for the couplings.
    """

    _uses_board = False

    def __init__(
        self,
        output_channels: int,
        num_blocks: int = 2,
        num_filters: int = 64,
        *,
        activation: str = "relu",
        **kwargs: Any,
    ) -> None:
        """Constructs the network.

        Args:
          num_blocks: B, number of residual blocks.
          num_filters: F, number of units of each dense layer except the last.
          activation: name of a Keras activation.
          output_channels, **kwargs: as in `Conditioner`, without `checkerboard_parity`.

        Raises:
          TypeError, ValueError: if a size or `activation` is invalid, or the condition is an image.
        """
        super().__init__(output_channels, **kwargs)
        self.num_blocks = validation.count(num_blocks, "num_blocks", 0, self.name)
        self.num_filters = validation.count(num_filters, "num_filters", 1, self.name)
        expected = f"{self.name}: expected the name of an activation"
        validation.require(isinstance(activation, str), expected, activation, TypeError)
        self.activation = activation
        self._activate = keras.activations.get(activation)
        expected = f"{self.name}: expected a conditional_event_shape [K] of vectors"
        validation.require(not self.takes_image, expected, self.conditional_event_shape)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the variables for inputs [B, C]; C can be 0."""
        size, blocks, filters = input_shape[-1], self.num_blocks, self.num_filters
        self.input_kernel = self._normal("input_kernel", [size, filters], fan_in=max(size, 1))
        # With tanh and zero biases, the network would start as an odd function of its inputs. It
        # would then learn even functions slowly, and often badly.
        self.input_bias = self._normal("input_bias", [filters], fan_in=max(size, 1))
        if blocks:
            shape = [2 * blocks, filters, filters]
            self.block_kernels = self._normal("block_kernels", shape, fan_in=filters)
            self.block_biases = self._weight("block_biases", [2 * blocks, filters], autocast=True)
        shape = [filters, self.output_channels]
        self.output_kernel = self._weight("output_kernel", shape, autocast=True)
        self.output_bias = self._weight("output_bias", shape[1:], autocast=True)
        # A factor and a shift per activation.
        self._add_film(2 * (2 * blocks + 1), filters)

    def _normal(self, name: str, shape: list[int], fan_in: int) -> keras.Variable:
        # Keras initializers would compute a wrong fan-in for a stack of kernels.
        stddev = math.sqrt(1 / fan_in)
        initializer = keras.initializers.RandomNormal(stddev=stddev, seed=initial_seed())
        return self._weight(name, shape, initializer, autocast=True)

    def call(self, inputs: tf.Tensor, conditional_input: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the parameters [B, K] for the kept half [B, C] and a condition [B, E]."""
        terms = iter(self._film(conditional_input, 4 * self.num_blocks + 2))

        def activate(x: tf.Tensor) -> tf.Tensor:
            return self._activate(modulated(x, next(terms), next(terms)))

        h = _affine(inputs, self.input_kernel, self.input_bias)
        if self.num_blocks:
            kernels, biases = tf.unstack(self.block_kernels), tf.unstack(self.block_biases)
        for i in range(0, 2 * self.num_blocks, 2):
            x = _affine(activate(h), kernels[i], biases[i])
            h = tf.add_n([h, _affine(activate(x), kernels[i + 1], biases[i + 1])])
        return _affine(activate(h), self.output_kernel, self.output_bias)


def _affine(x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    # The gradient of `bias_add` is cheaper than the gradient of `+`, which can broadcast.
    return tf.nn.bias_add(tf.matmul(x, kernel), bias)
