"""Adam by TensorFlow's fused kernel."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

__all__ = ["FusedAdam"]


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
          ValueError: if `amsgrad`.
        """
        if amsgrad:
            raise ValueError("FusedAdam: expected amsgrad=False, use keras.optimizers.Adam for it.")
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **kwargs)

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        """Updates one variable."""
        dtype = variable.dtype
        index = self._get_variable_index(variable)
        # Equal for all variables: the graph optimiser leaves one of each.
        step = tf.cast(self.iterations.value, dtype) + 1
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(tf.cast(self.beta_1, dtype), step),
            beta2_power=tf.pow(tf.cast(self.beta_2, dtype), step),
            lr=tf.cast(learning_rate, dtype),
            beta1=tf.cast(self.beta_1, dtype),
            beta2=tf.cast(self.beta_2, dtype),
            epsilon=tf.cast(self.epsilon, dtype),
            grad=tf.cast(gradient, dtype),
        )
