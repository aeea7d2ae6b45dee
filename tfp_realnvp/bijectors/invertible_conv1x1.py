"""An invertible 1×1 convolution: a learned linear map of the channels at each position."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp.bijectors.flow_bijector import Mapped, Pass
from tfp_realnvp.bijectors.normalization import ActNorm, ChannelMap, ChannelVariables
from tfp_realnvp.internal import initial_seeds, memoize, validation


class InvertibleConv1x1(ChannelMap):
    r"""Multiplies the channels at each position by a learned matrix, parametrized by PLU factors.

    ```
    inverse (data -> latent):  x = W y,   W = P L (U + diag(sign * exp(log_scale)))
    forward (latent -> data):  y = inverse(W) x
    ildj = H W sum(log_scale)
    ```

    P is a fixed permutation, L is lower triangular with a unit diagonal, and U is strictly upper
    triangular. W starts as a random orthogonal matrix.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> bijector = tfr.InvertibleConv1x1(num_channels=6)
    >>> y = tf.random.normal([5, 4, 4, 6])
    >>> x, ildj = bijector.inverse_and_log_det(y)
    >>> bool(tf.reduce_max(abs(bijector.forward(x) - y)) < 1e-4), ildj.shape
    (True, TensorShape([5]))

    #### References

    Kingma, Dhariwal: Glow, section 3.2. Hoogeboom, van den Berg, Welling: Emerging convolutions,
    section 3, for the PLU factors as learned variables.
    """

    _shared_argument = "factors"

    def __init__(
        self,
        num_channels: int,
        *,
        factors: "PLUFactors | None" = None,
        event_ndims: int = 3,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "invertible_conv1x1",
    ) -> None:
        """Constructs the bijector.

        Args:
          num_channels: number of channels C.
          factors: the factors of another `InvertibleConv1x1`, to share them.
          event_ndims, dtype, validate_args, name: as in `FlowBijector`.

        Raises:
          TypeError, ValueError: if an argument has a wrong type, or `num_channels` is below 1.
        """
        parameters = dict(locals())
        parameters["num_channels"] = validation.count(num_channels, "num_channels", 1, name)
        super().__init__(parameters, PLUFactors, is_constant_jacobian=True)
        self.factors: PLUFactors = self._channels

    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        fldj = self._log_det_of_positions(x, -tf.reduce_sum(self.factors.log_scale.value), p)
        return self.multiply(x, self.factors.inverse_matrix()), fldj

    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        ildj = self._log_det_of_positions(y, tf.reduce_sum(self.factors.log_scale.value), p)
        return self.multiply(y, self.factors.matrix()), ildj

    def multiply(
        self,
        value: tf.Tensor,
        matrix: tf.Tensor,
        offset: tf.Tensor | None = None,
        bias: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns `matrix (value + offset) + bias`, where `value` is [..., C]; `None` means 0."""
        # One matrix product over all positions is faster than a batch of products.
        flat = tf.reshape(value, [-1, self.factors.num_channels])
        if offset is not None:
            flat = tf.nn.bias_add(flat, offset)
        flat = tf.matmul(flat, matrix, transpose_b=True)
        if bias is not None:
            flat = tf.nn.bias_add(flat, bias)
        return tf.reshape(flat, tf.shape(value))


class NormalizedConv1x1:
    r"""An `ActNorm` and an `InvertibleConv1x1`, joined into one matrix product.

    ```
    inverse (data -> latent):  x = W diag(exp(log_scale)) (y - shift)
    forward (latent -> data):  y = diag(exp(-log_scale)) inverse(W) x + shift
    ```

    Joining them halves the number of operations. Both directions shift the data, not the latents:
    in the inverse, a shift after the product would lose digits if the shift is large.
    """

    def __init__(self, norm: ActNorm, conv: InvertibleConv1x1) -> None:
        self._norm, self._conv, self.name = norm, conv, conv.name

    def _checked_pass(self, value: tf.Tensor, p: Pass, inverse: bool) -> Mapped:
        norm, conv = self._norm, self._conv
        for part in (norm, conv):
            part._check_shape(value.shape, inverse)
        learned, factors = norm.learned, conv.factors
        learned.create(value.shape[-1])
        if inverse and not p.training:
            learned.warn_if_unset()
        if inverse:
            tensors = learned.shift.value, learned.log_scale.value
            matrix, offset, total = _normalized_product(*tensors, *factors.values())
            value = conv.multiply(value, matrix, offset=offset)
            return value, conv._log_det_of_positions(value, total, p)
        log_scale = tf.convert_to_tensor(learned.log_scale.value)
        matrix = tf.exp(-log_scale)[:, tf.newaxis] * factors.inverse_matrix()
        total = tf.reduce_sum(log_scale + factors.log_scale.value)
        value = conv.multiply(value, matrix, bias=learned.shift.value)
        return value, conv._log_det_of_positions(value, -total, p)


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class PLUFactors(ChannelVariables):
    """The PLU factors of an invertible [C, C] matrix, initially a random orthogonal matrix."""

    def build(self, input_shape: Any) -> None:
        """Creates the variables."""
        super().build(input_shape)
        initializer = keras.initializers.Orthogonal(seed=initial_seeds.initial_seed())
        rotation = initializer((self.num_channels, self.num_channels), "float32")
        factors, permutation = tf.linalg.lu(tf.cast(rotation, tf.float64))
        diagonal = tf.linalg.diag_part(factors)
        # `order` and `sign` are saved, but not trained. Reordering the rows of L U by `order` gives
        # P L U.
        self.order = self._factor("order", tf.argsort(permutation), "int32")
        self.sign = self._factor("sign", tf.sign(diagonal), "int32")
        self.log_scale = self._factor("log_scale", tf.math.log(tf.abs(diagonal)))
        # Holds the elements of L below the diagonal, and of U above the diagonal.
        off_diagonal = tf.linalg.set_diag(factors, tf.zeros_like(diagonal))
        self.off_diagonal = self._factor("off_diagonal", off_diagonal)

    def _factor(self, name: str, value: tf.Tensor, dtype: str | None = None) -> keras.Variable:
        options = {"dtype": dtype, "trainable": dtype is None, "autocast": False, "name": name}
        return self.add_weight(value.shape, lambda _, dtype: tf.cast(value, dtype), **options)

    def values(self) -> tuple[tf.Tensor, ...]:
        """Returns U and L, log scales, signs, and the order of the rows."""
        variables = (self.off_diagonal, self.log_scale, self.sign, self.order)
        return tuple(variable.value for variable in variables)

    def matrix(self) -> tf.Tensor:
        """Returns W = P L U, [C, C]."""
        return _product(*self.values())

    def inverse_matrix(self) -> tf.Tensor:
        """Returns the inverse of W."""
        *factors, order = self.values()
        lower, upper = _triangular(*factors)
        permutation = tf.one_hot(order, order.shape[0], dtype=lower.dtype)
        inverse = tf.linalg.triangular_solve(lower, tf.transpose(permutation))
        return tf.linalg.triangular_solve(upper, inverse, lower=False)


def _triangular(
    off_diagonal: tf.Tensor, log_scale: tf.Tensor, sign: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    size, dtype = off_diagonal.shape[0], off_diagonal.dtype
    # Products with constant masks take fewer operations than `band_part` and `set_diag`.
    below = tf.constant(np.tri(size, k=-1), dtype)
    above = tf.constant(np.tri(size, k=-1).T, dtype)
    identity = tf.constant(np.eye(size), dtype)
    diagonal = tf.cast(sign, dtype) * tf.exp(log_scale)
    return off_diagonal * below + identity, off_diagonal * above + diagonal * identity


@memoize.traced_once
def _product(*factors: tf.Tensor) -> tf.Tensor:
    *triangles, order = factors
    return tf.gather(tf.matmul(*_triangular(*triangles)), order)


@memoize.traced_once
def _normalized_product(
    shift: tf.Tensor, norm_log_scale: tf.Tensor, *factors: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns `W diag(exp(norm_log_scale))`, `-shift`, and the sum of all log scales."""
    off_diagonal, log_scale, sign, order = factors
    product = tf.gather(tf.matmul(*_triangular(off_diagonal, log_scale, sign)), order)
    return product * tf.exp(norm_log_scale), -shift, tf.reduce_sum(log_scale + norm_log_scale)
