"""Adam with few operations for hundreds of variables."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp import adam_update, checks, replicas
from tfp_realnvp.groups import map_in_groups, sum_in_groups

__all__ = ["FusedAdam"]


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class FusedAdam(keras.optimizers.Adam):
    r"""`keras.optimizers.Adam` with a kernel for a variable or 32, where Keras has forty for each.

    The update is the same: with the gradient g, at step t,

    ```
    m <- β₁ m + (1 - β₁) g,    v <- β₂ v + (1 - β₂) g²
    variable <- variable - learning_rate * sqrt(1 - β₂ᵗ) / (1 - β₁ᵗ) * m / (sqrt(v) + ε)
    ```

    A Real NVP has hundreds of small variables, and a training step built from Keras's operations
    spends more time in being traced and optimised than all the rest of it together. Up to 32 of
    them are updated at once: their moments lie end to end in one of `variables`, unless there is a
    `tf.distribute` strategy. What is saved is what Keras's Adam saves; either loads the other's.

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
        # Indices of the variables whose moments lie end to end in one variable; and for each
        # variable which of these that is, and which part of it, if not all.
        self._groups: tuple[tuple[int, ...], ...] = ()
        self._places: tuple[tuple[int, slice | None], ...] = ()

    def build(self, variables: Sequence[Any]) -> None:
        """Makes the moments, of zeros."""
        if self.built:
            return
        # In eager mode TensorFlow keeps a kernel, of 40 kB, for each name that it makes a variable
        # of. Keras has names of its own.
        with tf.variable_creator_scope(_named_alike):
            if self._can_group(variables):
                self._build_groups(variables)
            else:
                super().build(variables)
                self._groups = tuple((index,) for index in range(len(variables)))
        self._places = adam_update.places_in(self._groups, variables)

    def _can_group(self, variables: Sequence[Any]) -> bool:
        has_replicas = self._distribution_strategy.num_replicas_in_sync > 1
        have_moments = not any(map(self._overwrite_variable_with_gradient, variables))
        return have_moments and not (has_replicas or tf.distribute.has_strategy())

    def _build_groups(self, variables: Sequence[Any]) -> None:
        # Not Adam's own, which makes moments for each variable.
        super(keras.optimizers.Adam, self).build(variables)
        self._groups = adam_update.groups_of(variables)
        momentums, velocities = [], []
        for group in self._groups:
            members = [variables[index] for index in group]
            for moments, name in (momentums, "momentum"), (velocities, "velocity"):
                moments.append(self._add_moments(members, name))
        self._momentums, self._velocities = momentums, velocities

    def _add_moments(self, variables: Sequence[Any], name: str) -> keras.Variable:
        if len(variables) == 1:
            return self.add_variable_from_reference(variables[0], name)
        size = sum(math.prod(variable.shape) for variable in variables)
        first, last = (getattr(each, "path", each.name) for each in (variables[0], variables[-1]))
        name = f"{first}_to_{last}_{name}".replace("/", "_").replace(":", "_")
        return self.add_variable([size], dtype=variables[0].dtype, name=name)

    def save_own_variables(self, store: Any) -> None:
        """Stores what `keras.optimizers.Adam` stores: the moments of each variable."""
        for i, (variable, part, shape) in enumerate(self._stored()):
            value = variable.numpy()
            store[str(i)] = value if part is None else value[part].reshape(shape)

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` or that of `keras.optimizers.Adam` stored.

        Warns and loads nothing if there are more or fewer arrays, as Keras does.

        Raises:
          ValueError: if an array has another shape; nothing is loaded then.
        """
        stored = self._stored()
        if len(store.keys()) != len(stored):
            warnings.warn(
                f"{self.name}: expected {len(stored)} stored arrays, got {len(store.keys())}; "
                "the optimizer keeps its own.",
                stacklevel=2,
            )
            return
        values = [np.asarray(store[str(i)]) for i in range(len(stored))]
        for value, (variable, _, shape) in zip(values, stored, strict=True):
            if value.shape != shape:
                raise ValueError(
                    f"{self.name}: expected stored shape {shape} for {variable.path}, got "
                    f"{value.shape}."
                )
        for value, (variable, part, _) in zip(values, stored, strict=True):
            if part is None:
                variable.assign(value)
            else:
                variable.value[part].assign(value.reshape(-1))

    def _stored(self) -> list[tuple[keras.Variable, slice | None, tuple[int, ...]]]:
        """Returns the variable of each stored array, the part of it if not all, and the shape."""
        if all(part is None for _, part in self._places):
            return [(variable, None, tuple(variable.shape)) for variable in self.variables]
        # Moments come last.
        others = self.variables[: -2 * len(self._groups)]
        stored = [(variable, None, tuple(variable.shape)) for variable in others]
        for variable, (number, part) in zip(self._trainable_variables, self._places, strict=True):
            for moments in self._momentums, self._velocities:
                stored.append((moments[number], part, tuple(variable.shape)))
        return stored

    def update_step(self, gradient: tf.Tensor, variable: Any, learning_rate: tf.Tensor) -> None:
        """Updates one variable."""
        gradient = tf.cast(gradient, variable.dtype)
        scalars = self._scalars(learning_rate, gradient.dtype)
        self._update_alone(gradient, variable, tf.ones([], gradient.dtype), scalars)

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
        # Keras has more operations for each variable that clip.
        has_replicas = self._distribution_strategy.num_replicas_in_sync > 1
        if has_replicas or tf.distribute.has_strategy() or not self.applies_if_finite:
            super()._backend_apply_gradients(grads, trainable_variables)
            return
        grads = [tf.convert_to_tensor(gradient) for gradient in grads]
        dtype = _precision(grads)
        factor = tf.ones([], dtype)
        if self.global_clipnorm is not None:
            norm = _global_norm(grads, dtype)
            # Of a norm that is not finite Keras makes NaN, not zeros.
            factor = self._clipping_factor(norm) + 0 * norm
        scalars = self._scalars(self._get_current_learning_rate(), dtype)
        self._update(grads, trainable_variables, factor, scalars)

    def _backend_update_step(
        self, grads: Sequence[tf.Tensor], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        # Keras calls `update_step` for each.
        if self._distribution_strategy.num_replicas_in_sync > 1 or tf.distribute.has_strategy():
            super()._backend_update_step(grads, trainable_variables, learning_rate)
            return
        grads = [tf.convert_to_tensor(gradient) for gradient in grads]
        dtype = _precision(grads)
        scalars = self._scalars(learning_rate, dtype)
        self._update(grads, trainable_variables, tf.ones([], dtype), scalars)

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
        given = {
            self._get_variable_index(variable): (tf.cast(gradient, variable.dtype), variable)
            for gradient, variable in zip(gradients, variables, strict=True)
        }
        shared = [factor, *scalars.values()]
        rows = []
        for group, *moments in zip(self._groups, self._momentums, self._velocities, strict=True):
            pairs = [given[index] for index in group if index in given]
            if len(pairs) < len(group):
                for gradient, variable in pairs:
                    self._update_alone(gradient, variable, factor, scalars)
                continue
            handles = [each.handle for _, each in pairs] + [each.value.handle for each in moments]
            row = [*(gradient for gradient, _ in pairs), *handles]
            if len(group) == 1:
                rows.append(row)
            else:
                map_in_groups(adam_update.update_all, [row], shared, number=len(group))
        map_in_groups(adam_update.update_one, rows, shared)

    def _update_alone(
        self, gradient: tf.Tensor, variable: Any, factor: tf.Tensor, scalars: dict[str, tf.Tensor]
    ) -> None:
        number, part = self._places[self._get_variable_index(variable)]
        moments = [each[number].value for each in (self._momentums, self._velocities)]
        shared = [factor, *scalars.values()]
        if part is None:
            handles = [each.handle for each in (variable, *moments)]
            adam_update.update_one(gradient, *handles, *shared)
        else:
            adam_update.update_part(gradient, variable, *moments, part, *shared)

    def _scalars(self, learning_rate: Any, dtype: tf.DType) -> dict[str, tf.Tensor]:
        # Where gradients are accumulated, this is no variable.
        step = tf.cast(keras.ops.convert_to_tensor(self.iterations), dtype) + 1
        # A number would otherwise become one of single precision first.
        beta_1, beta_2, epsilon = (
            tf.constant(value, dtype) for value in (self.beta_1, self.beta_2, self.epsilon)
        )
        rate = tf.cast(learning_rate, dtype)
        scalars = tf.pow(beta_1, step), tf.pow(beta_2, step), rate, beta_1, beta_2, epsilon
        return dict(zip(adam_update.SCALARS, scalars, strict=True))


def _named_alike(next_creator: Callable[..., tf.Variable], **kwargs: Any) -> tf.Variable:
    return next_creator(**{**kwargs, "name": "moment"})


def _precision(gradients: Sequence[tf.Tensor]) -> tf.DType:
    return tf.float64 if any(each.dtype == tf.float64 for each in gradients) else tf.float32


def _global_norm(gradients: Sequence[tf.Tensor], dtype: tf.DType) -> tf.Tensor:
    rows = [[gradient] for gradient in gradients]
    return tf.sqrt(2 * sum_in_groups(_half_square, rows, dtype=dtype))


def _half_square(gradient: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.cast(tf.nn.l2_loss(gradient), dtype)
