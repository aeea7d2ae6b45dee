"""The optimizer `Muon`: orthogonalized momentum updates for kernels, Adam for other variables.

`Muon` stacks kernels of equal shape as one batch of matrices and orthogonalizes the batch at once.
"""

import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import memoize
from tfp_realnvp.training.fused_adam import FusedAdam
from tfp_realnvp.training.packing import Group

# Coefficients of the polynomial a s + b s³ + c s⁵. Applied five times, it maps singular values in
# [0.002, 1] to values between 0.68 and 1.21.
_COEFFICIENTS, _NUM_STEPS = (3.4445, -4.7750, 2.0315), 5
# The root mean square of an update, relative to the learning rate; about the same as Adam's.
_ROOT_MEAN_SQUARE = 0.2


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class Muon(FusedAdam):
    r"""Orthogonalized momentum updates for kernels, Adam for all other variables.

    A kernel is a matrix of n inputs and m outputs; for a convolution, [h, w, C, F], n = h w C. Each
    step updates M, the moving average of the gradient G, and orthogonalizes an average of M and G:

    ```
    M <- μ M + (1 - μ) G,    U S Vᵀ = μ M + (1 - μ) G
    kernel <- (1 - learning_rate * weight_decay) * kernel
    kernel <- kernel - learning_rate * 0.2 * sqrt(max(n, m)) * U Vᵀ
    ```

    A step has the same length in all directions, even where gradients are small. Five Newton-Schulz
    steps approximate `U Vᵀ`, with singular values between 0.68 and 1.21 for all values in S above
    0.002 times the norm of S. The root mean square of a step's elements is about 0.2 times the
    learning rate. Adam's steps have a similar size, so both can share one learning rate.

    Variables named `kernel` or `..._kernel` with two or four axes count as kernels, as in Keras's
    dense and convolutional layers. Variables named `..._kernels` with one more axis count as stacks
    of kernels, as in the networks of this package.

    `RealNVPImage.compact` needs fewer steps with Muon than with Adam, see `benchmarks/README.md`.
    `keras.optimizers.Muon` applies Adam to the kernels of convolutions.

    #### Example

    >>> import keras, numpy as np, tfp_realnvp as tfr
    >>> kernel = keras.Variable(np.zeros([2, 2]), name="kernel")
    >>> optimizer = tfr.Muon(0.1)
    >>> optimizer.apply([keras.ops.convert_to_tensor([[3.0, 0.0], [0.0, -0.3]])], [kernel])
    >>> bool((abs(np.diag(kernel)) > 0.6 * 0.1 * 0.2 * 2 ** 0.5).all())
    True

    #### References

    Jordan and others: Muon, an optimizer for hidden layers in neural networks, 2024. Liu and
    others: Muon is scalable for LLM training, 2025, eq. 4, for the factor of the step.
    """

    def __init__(
        self,
        learning_rate: Any = 0.004,
        momentum: float = 0.95,
        weight_decay: float = 0.3,
        **kwargs: Any,
    ) -> None:
        """Constructs the optimizer.

        Args:
          learning_rate: a number or a `keras.optimizers.schedules.LearningRateSchedule`.
          momentum: μ, in [0, 1).
          weight_decay: decay of kernels; other variables have none. Because all steps have the
            same length, kernels without decay grow as long as training lasts. Runs of an hour with
            less decay than the default became unstable.
          **kwargs: as in `FusedAdam`; `beta_1`, `beta_2` and `epsilon` apply only to Adam.
        """
        super().__init__(learning_rate, weight_decay=weight_decay, **kwargs)
        self.momentum = momentum

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the optimizer's variables for a model's `variables`. Only kernels decay."""
        if not self.built:
            self.exclude_from_weight_decay([v for v in variables if _sides(v) is None])
        super().build(variables)

    def _group_of(self, variable: Any) -> Group:
        group, sides = super()._group_of(variable), _sides(variable)
        return group._replace(element_shape=sides, large_variable=None) if sides else group

    def _moments_of(self, group: Group) -> tuple[str, ...]:
        return ("momentum",) if _is_kernel(group) else super()._moments_of(group)

    def _step(
        self, group: Group, gradient: tf.Tensor, rate: tf.Tensor, *moments: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        if not _is_kernel(group):
            return super()._step(group, gradient, rate, *moments)
        # Kernels of the same shape are one batch of matrices.
        [momentum] = moments
        momentum = self._mean(momentum, gradient)
        length = rate * (_ROOT_MEAN_SQUARE * math.sqrt(max(group.element_shape)))
        return length * _orthogonalized(self._mean(momentum, gradient)), momentum

    def _mean(self, mean: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        return self.momentum * mean + (1 - self.momentum) * value

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config`."""
        return {**super().get_config(), "momentum": self.momentum}


def _is_kernel(group: Group) -> bool:
    return bool(group.element_shape) and group.large_variable is None


def _sides(variable: Any) -> tuple[int, int] | None:
    """Returns the numbers of inputs and outputs of a kernel; `None` for other variables."""
    *_, name = re.sub(r"(/replica_\d+)?(:\d+)?$", "", variable.name).split("/")
    shape = tuple(variable.shape)
    if name.endswith("_kernels"):
        shape = shape[1:]
    elif name != "kernel" and not name.endswith("_kernel"):
        return None
    if len(shape) not in (2, 4) or 0 in shape:
        return None
    return math.prod(shape[:-1]), shape[-1]


def _orthogonalized(matrices: tf.Tensor) -> tf.Tensor:
    """Orthogonalizes matrices [N, n, m]: sets their singular values to nearly 1."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = tf.linalg.matrix_transpose(matrices) if is_tall else matrices
    num_rows, num_columns = x.shape[-2:]
    # At a ratio of 1.5, both functions need about the same number of multiplications.
    is_wide = num_columns > 1.5 * num_rows
    x = _newton_schulz_by_rows(x) if is_wide else _newton_schulz(x)
    return tf.linalg.matrix_transpose(x) if is_tall else x


@functools.partial(memoize.traced_once, any_shape=True)
def _newton_schulz(x: tf.Tensor) -> tf.Tensor:
    a, b, c = _COEFFICIENTS
    x = _normalized(x)
    for _ in range(_NUM_STEPS):
        squares = tf.matmul(x, x, transpose_b=True)
        x = a * x + tf.matmul(b * squares + c * tf.matmul(squares, squares), x)
    return x


@functools.partial(memoize.traced_once, any_shape=True)
def _newton_schulz_by_rows(x: tf.Tensor) -> tf.Tensor:
    """Computes `_newton_schulz` with only two products that involve x.

    Each step multiplies x from the left by `P = a + b S + c S²`, where `S = x xᵀ`. The next S is `P
    S P`, so only the first and the last step use x. The eigenvalues of S are the squares of the
    singular values of x. If singular values differ by orders of magnitude, the relative error in
    float32 is 3e-4 instead of 1e-5, which does not matter in training.
    """
    a, b, c = _COEFFICIENTS
    x = _normalized(x)
    squares = tf.matmul(x, x, transpose_b=True)
    identity = tf.eye(tf.shape(x)[-2], dtype=x.dtype)
    product = identity
    for step in range(_NUM_STEPS):
        factor = a * identity + b * squares + c * tf.matmul(squares, squares)
        product = tf.matmul(factor, product) if step else factor
        if step < _NUM_STEPS - 1:
            squares = tf.matmul(factor, tf.matmul(squares, factor))
    return tf.matmul(product, x)


def _normalized(x: tf.Tensor) -> tf.Tensor:
    return tf.math.divide_no_nan(x, tf.norm(x, axis=[-2, -1], keepdims=True))
