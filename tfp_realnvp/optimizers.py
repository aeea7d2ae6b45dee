"""Steps that are made only if they are finite; Adam by TensorFlow's fused kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp import checks, replicas
from tfp_realnvp.groups import map_in_groups, sum_in_groups

__all__ = ["FusedAdam", "apply_if_finite"]

# What the kernel takes beside variables and gradient.
_SCALARS = ("beta1_power", "beta2_power", "lr", "beta1", "beta2", "epsilon")


def apply_if_finite(
    optimizer: keras.optimizers.Optimizer,
    loss: tf.Tensor,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
) -> tf.Tensor:
    """Applies gradients if they and the loss are finite, or else changes nothing at all.

    On several replicas all make the same step, with gradients that were summed over them: the norm
    that clips them is that of the sum.

    #### Example

    >>> import keras
    >>> variable = keras.Variable(1.0)
    >>> optimizer = keras.optimizers.SGD(0.5)
    >>> gradient = keras.ops.convert_to_tensor(float('nan'))
    >>> bool(apply_if_finite(optimizer, gradient, [gradient], [variable])), float(variable)
    (False, 1.0)

    Args:
      optimizer: any of Keras.
      loss: a scalar, the same on all replicas.
      gradients: of `variables`, the same on all replicas.
      variables: those that the optimizer was built for.

    Returns:
      A scalar `bool` tensor: whether all was finite.
    """
    if isinstance(optimizer, FusedAdam) and optimizer.applies_if_finite:
        return optimizer.apply_if_finite(loss, gradients, variables)
    is_finite = tf.math.is_finite(tf.linalg.global_norm([loss, *gradients]))
    if replicas.num_replicas() > 1:
        return _apply_on_replicas(optimizer, is_finite, gradients, variables)

    def apply() -> tf.Tensor:
        optimizer.apply(gradients, variables)
        return tf.constant(True)

    return tf.cond(is_finite, apply, lambda: tf.constant(False))


def _apply_on_replicas(
    optimizer: keras.optimizers.Optimizer,
    is_finite: tf.Tensor,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
) -> tf.Tensor:
    # Keras waits for the other replicas within `apply`, which no branch may hold: what was to be
    # left out is undone.
    state = [variable.value for variable in (*variables, *optimizer.variables)]
    before = [tf.identity(variable) for variable in state]
    # And it sums over replicas, once more: one of them gives the sum, the others zeros.
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    counts = is_finite & tf.equal(replica, 0)
    gradients = [tf.math.multiply_no_nan(g, tf.cast(counts, g.dtype)) for g in gradients]
    optimizer.apply(gradients, variables)
    for variable, value in zip(state, before, strict=True):
        replicas.assign(variable, tf.where(is_finite, variable, value))
    return is_finite


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class FusedAdam(keras.optimizers.Adam):
    r"""`keras.optimizers.Adam` with one kernel for each variable, where Keras has about forty.

    The update is the same: with the gradient g, at step t,

    ```
    m <- β₁ m + (1 - β₁) g,    v <- β₂ v + (1 - β₂) g²
    variable <- variable - learning_rate * sqrt(1 - β₂ᵗ) / (1 - β₁ᵗ) * m / (sqrt(v) + ε)
    ```

    A Real NVP has hundreds of small variables, and a training step built from Keras's operations
    spends more time in being traced and optimised than all the rest of it together.

    #### Example

    >>> import keras
    >>> variable = keras.Variable([1.0, 2.0])
    >>> optimizer = FusedAdam(0.1)
    >>> optimizer.apply([keras.ops.convert_to_tensor([3.0, -3.0])], [variable])
    >>> [round(float(value), 3) for value in variable.numpy()]
    [0.9, 2.1]

    #### References

    Kingma, Ba: Adam, algorithm 1 and the end of section 2.
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **kwargs: Any,
    ) -> None:
        """Constructs the optimizer.

        Args:
          learning_rate: a number or a `keras.optimizers.schedules.LearningRateSchedule`.
          beta_1: β₁.
          beta_2: β₂.
          epsilon: ε.
          amsgrad: must be `False`: the kernel has no such variant.
          **kwargs: as in `keras.optimizers.Adam`, for example `global_clipnorm`.

        Raises:
          ValueError: if `amsgrad`, or a number is out of range.
        """
        if amsgrad:
            raise ValueError("FusedAdam: expected amsgrad=False, got True; keras's Adam has it.")
        for value, is_valid, expected in (
            (beta_1, lambda x: 0 <= x < 1, "beta_1 in [0, 1)"),
            (beta_2, lambda x: 0 <= x < 1, "beta_2 in [0, 1)"),
            (epsilon, lambda x: 0 < x < math.inf, "a positive epsilon"),
        ):
            checks.real(value, is_valid, f"FusedAdam: expected {expected}")
        if (clip := kwargs.get("global_clipnorm")) is not None:
            checks.real(clip, lambda x: x > 0, "FusedAdam: expected a positive global_clipnorm")
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **kwargs)

    def build(self, variables: Sequence[Any]) -> None:
        """Makes the moments, of zeros."""
        # In eager mode TensorFlow keeps a kernel, of 40 kB, for each name that it makes a variable
        # of. Keras has names of its own.
        with tf.variable_creator_scope(_named_alike):
            super().build(variables)

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        """Updates one variable."""
        gradient = tf.cast(gradient, variable.dtype)
        scalars = self._scalars(learning_rate, gradient.dtype)
        one = tf.ones([], gradient.dtype)
        _apply_adam(gradient, *self._handles(variable), one, *scalars.values())

    @property
    def applies_if_finite(self) -> bool:
        """Whether `apply_if_finite` does all that `apply` would with this configuration."""
        unusual = (
            self.clipnorm,
            self.clipvalue,
            self.use_ema,
            self.weight_decay,
            self.loss_scale_factor,
            self.gradient_accumulation_steps,
        )
        return not any(unusual)

    def apply_if_finite(
        self, loss: tf.Tensor, gradients: Sequence[tf.Tensor], variables: Sequence[Any]
    ) -> tf.Tensor:
        """Applies gradients clipped to `global_clipnorm`, if they and the loss are finite.

        Otherwise variables, moments and iterations keep their values. It takes no branch: a step
        that is not to be made is one of zero length. Each replica updates its own copies, all by
        the same gradients.

        Args:
          loss: a scalar.
          gradients: of `variables`, summed over replicas.
          variables: those that the optimizer was built for.

        Returns:
          A scalar `bool` tensor: whether all was finite.
        """
        norm = _global_norm(gradients, loss.dtype)
        is_finite = tf.math.is_finite(norm) & tf.math.is_finite(loss)
        factor = tf.where(is_finite, self._clipping_factor(norm), 0.0)

        def unless_finite(neutral: float, value: tf.Tensor) -> tf.Tensor:
            return tf.where(is_finite, value, tf.constant(neutral, value.dtype))

        scalars = self._scalars(self._get_current_learning_rate(), loss.dtype)
        scalars["lr"] = unless_finite(0.0, scalars["lr"])
        scalars["beta1"] = unless_finite(1.0, scalars["beta1"])
        scalars["beta2"] = unless_finite(1.0, scalars["beta2"])
        self._update(gradients, variables, factor, scalars)
        iterations = self.iterations.value
        replicas.assign(iterations, iterations + tf.cast(is_finite, iterations.dtype))
        return is_finite

    def _backend_apply_gradients(
        self, grads: Sequence[tf.Tensor], trainable_variables: Sequence[Any]
    ) -> None:
        # Keras calls `update_step` for each, and has more operations for each that clip.
        has_replicas = self._distribution_strategy.num_replicas_in_sync > 1
        if has_replicas or tf.distribute.has_strategy() or not self.applies_if_finite:
            super()._backend_apply_gradients(grads, trainable_variables)
            return
        grads = [tf.convert_to_tensor(gradient) for gradient in grads]
        is_double = any(gradient.dtype == tf.float64 for gradient in grads)
        dtype = tf.float64 if is_double else tf.float32
        factor = tf.ones([], dtype)
        if self.global_clipnorm is not None:
            norm = _global_norm(grads, dtype)
            # Of a norm that is not finite Keras makes NaN, not zeros.
            factor = self._clipping_factor(norm) + 0 * norm
        scalars = self._scalars(self._get_current_learning_rate(), dtype)
        self._update(grads, trainable_variables, factor, scalars)

    def _clipping_factor(self, norm: tf.Tensor) -> tf.Tensor:
        clip = self.global_clipnorm
        return tf.ones_like(norm) if clip is None else clip / tf.maximum(norm, clip)

    def _update(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[Any],
        factor: tf.Tensor,
        scalars: dict[str, tf.Tensor],
    ) -> None:
        rows = [
            (tf.cast(gradient, variable.dtype), *self._handles(variable))
            for gradient, variable in zip(gradients, variables, strict=True)
        ]
        map_in_groups(_apply_adam, rows, [factor, *scalars.values()])

    def _scalars(self, learning_rate: Any, dtype: tf.DType) -> dict[str, tf.Tensor]:
        # Where gradients are accumulated, this is no variable.
        step = tf.cast(keras.ops.convert_to_tensor(self.iterations), dtype) + 1
        # A number would otherwise become one of single precision first.
        beta_1, beta_2, epsilon = (
            tf.constant(value, dtype) for value in (self.beta_1, self.beta_2, self.epsilon)
        )
        rate = tf.cast(learning_rate, dtype)
        scalars = tf.pow(beta_1, step), tf.pow(beta_2, step), rate, beta_1, beta_2, epsilon
        return dict(zip(_SCALARS, scalars, strict=True))

    def _handles(self, variable: Any) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        index = self._get_variable_index(variable)
        moments = self._momentums[index], self._velocities[index]
        return tuple(each.handle for each in (variable, *(moment.value for moment in moments)))


def _named_alike(next_creator: Callable[..., tf.Variable], **kwargs: Any) -> tf.Variable:
    return next_creator(**{**kwargs, "name": "moment"})


def _global_norm(gradients: Sequence[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    rows = [[gradient] for gradient in gradients]
    return tf.sqrt(2 * sum_in_groups(_half_square, rows, dtype=dtype))


def _half_square(gradient: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(tf.nn.l2_loss(gradient), dtype)


def _apply_adam(
    gradient: tf.Tensor,
    variable: tf.Tensor,
    momentum: tf.Tensor,
    velocity: tf.Tensor,
    factor: tf.Tensor,
    *scalars: tf.Tensor,
) -> None:
    dtype = gradient.dtype
    tf.raw_ops.ResourceApplyAdam(
        var=variable,
        m=momentum,
        v=velocity,
        # Zero times NaN is zero here.
        grad=tf.math.multiply_no_nan(gradient, tf.cast(factor, dtype)),
        **{name: tf.cast(value, dtype) for name, value in zip(_SCALARS, scalars, strict=True)},
    )
