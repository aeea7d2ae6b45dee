"""Optimizer steps that are made under a condition, and Adam by TensorFlow's fused kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import private_api, replicas, validation

__all__ = ["FusedAdam", "apply_if", "averaged_weights"]


def apply_if(
    condition: tf.Tensor,
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
) -> None:
    """Applies gradients if a condition holds, and otherwise changes nothing, not even moments.

    With several replicas all make the same step. The gradients are sums over replicas, and are
    clipped by the norm of the sum.

    #### Example

    >>> import keras, tensorflow as tf
    >>> from tfp_realnvp.training.optimizers import apply_if
    >>> variable, optimizer = keras.Variable(1.0), keras.optimizers.SGD(0.5)
    >>> optimizer.build([variable])
    >>> apply_if(tf.constant(False), optimizer, [tf.constant(1.0)], [variable])
    >>> float(variable), int(optimizer.iterations)
    (1.0, 0)

    Args:
      condition: a scalar `bool`, the same on all replicas.
      optimizer: any Keras optimizer, built.
      gradients: of `variables`, the same on all replicas.
      variables: those that the optimizer was built for.
    """
    if not tf.distribute.has_strategy():
        tf.cond(
            condition, lambda: _apply(optimizer, gradients, variables), lambda: tf.constant(False)
        )
        return
    # `apply` communicates, even with a single replica, which is not possible in a branch of a
    # `tf.cond`. The step is made, and undone where the condition does not hold.
    state = [variable.value for variable in (*variables, *optimizer.variables)]
    before = [tf.convert_to_tensor(variable) for variable in state]
    # `apply` sums the gradients over replicas again. They are sums already, so that only the first
    # replica passes them on, and the others pass zeros.
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    counts = condition & tf.equal(replica, 0)
    gradients = [tf.math.multiply_no_nan(g, tf.cast(counts, g.dtype)) for g in gradients]
    optimizer.apply(gradients, variables)
    for variable, value in zip(state, before, strict=True):
        replicas.assign(variable, tf.where(condition, variable, value))


def _apply(
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor],
    variables: Sequence[keras.Variable],
) -> tf.Tensor:
    optimizer.apply(gradients, variables)
    return tf.constant(True)


@contextlib.contextmanager
def averaged_weights(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]
) -> Iterator[None]:
    """Puts the averages of an optimizer with `use_ema=True` in place of the variables' values.

    On exit the values are what they were. Without such an optimizer, or before its first step, it
    does nothing.

    #### Example

    >>> import keras
    >>> from tfp_realnvp.training.optimizers import averaged_weights
    >>> variable, optimizer = keras.Variable(1.0), keras.optimizers.SGD(1.0, use_ema=True)
    >>> for gradient in (1.0, 2.0):
    ...   optimizer.apply([keras.ops.convert_to_tensor(gradient)], [variable])
    >>> with averaged_weights(optimizer, [variable]):
    ...   average = float(variable)
    >>> round(average, 2), float(variable)
    (-0.02, -2.0)

    Args:
      optimizer: any Keras optimizer, built.
      variables: those that the optimizer was built for.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if not getattr(optimizer, "use_ema", False) or not optimizer.iterations.numpy():
        yield
        return
    weights = [tf.identity(variable.value) for variable in variables]
    try:
        optimizer.finalize_variable_values(variables)
        yield
    finally:
        for variable, value in zip(variables, weights, strict=True):
            variable.value.assign(value)


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class FusedAdam(keras.optimizers.Adam):
    r"""`keras.optimizers.Adam` with one fused kernel for each variable instead of ten operations.

    The update is the same: with the gradient g, at step t,

    ```
    m <- β₁ m + (1 - β₁) g,    v <- β₂ v + (1 - β₂) g²
    variable <- variable - learning_rate * sqrt(1 - β₂ᵗ) / (1 - β₁ᵗ) * m / (sqrt(v) + ε)
    ```

    A training step is traced and optimized faster (see `benchmarks/README.md`), and its graph is
    freed with the model.

    #### Example

    >>> import keras, tfp_realnvp as tfr
    >>> variable = keras.Variable([1.0, 2.0])
    >>> optimizer = tfr.FusedAdam(0.1)
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
          beta_1: β₁, in [0, 1).
          beta_2: β₂, in [0, 1).
          epsilon: ε, positive.
          amsgrad: must be `False`: the kernel has no such variant.
          **kwargs: as in `keras.optimizers.Adam`, for example `global_clipnorm`.

        Raises:
          ValueError: if `amsgrad`, or a number is out of range.
        """
        if amsgrad:
            raise ValueError("FusedAdam: expected amsgrad=False, got True; keras's Adam has it.")
        for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
            validation.real(beta, lambda x: 0 <= x < 1, f"FusedAdam: expected {name} in [0, 1)")
        validation.positive(epsilon, "FusedAdam: expected a positive epsilon")
        if (clip := kwargs.get("global_clipnorm")) is not None:
            validation.real(clip, lambda x: x > 0, "FusedAdam: expected a positive global_clipnorm")
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **kwargs)

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        """Updates one variable."""
        self._update([gradient], [variable], learning_rate)

    def _clip_gradients(self, grads: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        if self.global_clipnorm is None:
            return super()._clip_gradients(grads)
        # That of Keras fails for gradients of several dtypes, and runs one more operation for each.
        widest = max({gradient.dtype for gradient in grads}, key=lambda dtype: dtype.size)
        halves = [tf.cast(tf.nn.l2_loss(gradient), widest) for gradient in grads]
        norm = tf.sqrt(2 * tf.add_n(halves))
        factor = self.global_clipnorm / tf.maximum(norm, self.global_clipnorm) + 0 * norm
        return [gradient * tf.cast(factor, gradient.dtype) for gradient in grads]

    def _backend_update_step(
        self, grads: Sequence[tf.Tensor], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        if tf.distribute.has_strategy():
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        # Keras sums gradients over replicas, even over a single one, by a `tf.custom_gradient`,
        # which keeps the graph of the step for the life of the process.
        variables = [v.value if isinstance(v, keras.Variable) else v for v in trainable_variables]
        self._update(grads, variables, learning_rate)

    def _update(
        self, gradients: Sequence[tf.Tensor], variables: Sequence[Any], learning_rate: Any
    ) -> None:
        dtypes = {variable.dtype for variable in variables}
        scalars = {dtype: self._scalars(learning_rate, dtype) for dtype in dtypes}
        for gradient, variable in zip(gradients, variables, strict=True):
            first, second = private_api.adam_moments(self, variable)
            tf.raw_ops.ResourceApplyAdam(
                var=variable.handle,
                m=first.value.handle,
                v=second.value.handle,
                grad=tf.cast(tf.convert_to_tensor(gradient), variable.dtype),
                **scalars[variable.dtype],
            )

    def _scalars(self, learning_rate: Any, dtype: tf.DType) -> dict[str, tf.Tensor]:
        """Returns the scalar arguments of the kernel."""
        step = tf.cast(keras.ops.convert_to_tensor(self.iterations), dtype) + 1
        beta1, beta2, epsilon = (
            tf.constant(value, dtype) for value in (self.beta_1, self.beta_2, self.epsilon)
        )
        return {
            "beta1_power": tf.pow(beta1, step),
            "beta2_power": tf.pow(beta2, step),
            "lr": tf.cast(learning_rate, dtype),
            "beta1": beta1,
            "beta2": beta2,
            "epsilon": epsilon,
        }
