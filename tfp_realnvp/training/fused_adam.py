"""Adam on all variables at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import private_api, replicas
from tfp_realnvp.training.packing import Group, Packing

__all__ = ["FusedAdam"]

# Number of elements from which a variable is updated alone: passes over it take longer than the
# operations that packing saves.
_LARGE = 2**16


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class FusedAdam(keras.optimizers.Adam):
    r"""`keras.optimizers.Adam` with few operations for all variables instead of ten for each.

    The update is the same: with the gradient g, at step t,

    ```
    m <- β₁ m + (1 - β₁) g,    v <- β₂ v + (1 - β₂) g²
    variable <- variable - learning_rate * sqrt(1 - β₂ᵗ) / (1 - β₁ᵗ) * m / (sqrt(v) + ε)
    ```

    All small variables of a dtype are updated as one vector, whose moments are one variable each:
    the optimizer is constructed, and a step is traced, faster (see `benchmarks/README.md`). Each
    large variable, of 65,536 elements or more, is updated in place by TensorFlow's operation for
    Adam. `keras.optimizers.Adam` cannot load the moments.

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
          amsgrad: must be `False`.
          **kwargs: as in `keras.optimizers.Adam`, for example `global_clipnorm`.

        Raises:
          ValueError: if `amsgrad`.
        """
        if amsgrad:
            raise ValueError("FusedAdam: expected amsgrad=False, got True; keras's Adam has it.")
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **kwargs)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the optimizer's variables, for these variables of a model."""
        if self.built:
            return
        # Not that of Adam, which creates two for each of `variables`.
        super(keras.optimizers.Adam, self).build(variables)
        groups = [self._group_of(variable) for variable in variables]
        self.packing = Packing([variable.shape for variable in variables], groups)
        shapes = self.packing.packed_shapes
        self._moments = tuple(
            tuple(
                self.add_variable(shape, dtype=group.dtype.name, name=name)
                for name in self._moments_of(group)
            )
            for group, shape in zip(self.packing.groups, shapes, strict=True)
        )

    def _group_of(self, variable: Any) -> Group:
        """Returns the group in which a variable is updated."""
        decays = bool(self.weight_decay) and self._use_weight_decay(variable)
        is_large = math.prod(variable.shape) >= _LARGE
        single = self._get_variable_index(variable) if is_large else None
        return Group(tf.as_dtype(variable.dtype), decays=decays, single=single)

    def _moments_of(self, group: Group) -> tuple[str, ...]:
        """Returns the names of the moments that `_step` takes and returns."""
        return "momentum", "velocity"

    def takes_packed(self, variables: Sequence[Any]) -> bool:
        """Returns whether `apply_packed` makes the steps of `apply` for all these variables."""
        options = (
            self.clipnorm,
            self.clipvalue,
            self.loss_scale_factor,
            self.gradient_accumulation_steps,
            self.use_ema,
        )
        constraints = [getattr(variable, "constraint", None) for variable in variables]
        keys, built_for = (map(self._var_key, vs) for vs in (variables, self._trainable_variables))
        return list(keys) == list(built_for) and not (any(options) or any(constraints))

    def apply_packed(self, packed: Sequence[tf.Tensor], condition: tf.Tensor) -> None:
        """Makes a step with packed gradients, summed over replicas, if a condition holds."""
        self._update(packed, self.learning_rate, [condition] * len(packed))
        iterations = self.iterations.value
        replicas.assign(iterations, iterations + tf.cast(condition, iterations.dtype))

    @property
    def _clips_globally(self) -> bool:
        # As in Keras, a norm of 0 or less does not clip.
        return bool(self.global_clipnorm and self.global_clipnorm > 0)

    def _clip_gradients(self, grads: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        # `_update` clips by the global norm.
        return grads if self._clips_globally else super()._clip_gradients(grads)

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        pass  # `_update` has the decay.

    def _backend_update_step(
        self, grads: Sequence[tf.Tensor], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        # Keras sums gradients over replicas, even over a single one, by a `tf.custom_gradient`,
        # which keeps the graph of the step for the life of the process.
        known, gradients = self._trainable_variables, {}
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            dense = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
            gradients[self._get_variable_index(variable)] = dense
        mask: Sequence[tf.Tensor | None] = [None] * len(self.packing.groups)
        if len(gradients) < len(known):
            # Variables without a gradient stay as they are, and their moments too.
            singles = {group.single for group in self.packing.groups}
            shapes = [[] if i in singles else v.shape for i, v in enumerate(known)]
            mask = self.packing.pack([tf.fill(s, i in gradients) for i, s in enumerate(shapes)])
            zeros = {i: tf.zeros(v.shape, v.dtype) for i, v in enumerate(known)}
            gradients = {**zeros, **gradients}
        packed = self.packing.pack([gradients[i] for i in range(len(known))])
        self._update(replicas.sum_over_replicas(packed), learning_rate, mask)

    def _update(
        self, packed: Sequence[tf.Tensor], learning_rate: Any, mask: Sequence[tf.Tensor | None]
    ) -> None:
        """Updates variables where their group's mask, packed or a scalar, is true or `None`."""
        variables = [
            variable.value if isinstance(variable, keras.Variable) else variable
            for variable in self._trainable_variables
        ]
        factor = self._clip_factor(packed) if self._clips_globally else None

        @functools.cache
        def scalars(dtype: tf.DType, mask: Any) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
            condition = None if mask is None else mask.deref()
            return self._scalars(dtype, learning_rate, factor, condition)

        for i, gradient in enumerate(packed):
            group, moments = self.packing.groups[i], [m.value for m in self._moments[i]]
            if group.single is not None:
                # One set of scalars for all large variables of a dtype.
                common = scalars(group.dtype, None if mask[i] is None else mask[i].ref())
                variable = variables[group.single]
                self._update_in_place(variable, gradient, moments, group.decays, *common)
                continue
            rate = tf.cast(learning_rate, group.dtype)
            if factor is not None:
                gradient = tf.cast(factor, group.dtype) * gradient
            old = [tf.convert_to_tensor(moment) for moment in moments]
            change, *new = self._step(group, gradient, rate, *old)
            if group.decays:
                values = self.packing.pack_group(i, variables)
                change += rate * self.weight_decay * values
            if mask[i] is not None:
                change = tf.where(mask[i], change, tf.zeros([], group.dtype))
                new = [tf.where(mask[i], *pair) for pair in zip(new, old, strict=True)]
            for moment, value in zip(moments, new, strict=True):
                private_api.assign_on_replica(moment, value)
            changes = self.packing.unpack_group(i, change)
            for index, difference in zip(self.packing.indices[i], changes, strict=True):
                handle = variables[index].handle
                tf.raw_ops.AssignSubVariableOp(resource=handle, value=difference)

    def _update_in_place(
        self,
        variable: tf.Variable,
        gradient: tf.Tensor,
        moments: Sequence[tf.Variable],
        decays: bool,
        factor: tf.Tensor,
        scalars: dict[str, tf.Tensor],
    ) -> None:
        """Updates a large variable and its moments in place, in one pass over its elements."""
        if decays:
            decay = scalars["lr"] * self.weight_decay * tf.convert_to_tensor(variable)
            tf.raw_ops.AssignSubVariableOp(resource=variable.handle, value=decay)
        m, v = (moment.handle for moment in moments)
        # Zeros for a factor of zero, also where the gradient is not finite.
        gradient = tf.math.multiply_no_nan(gradient, factor)
        tf.raw_ops.ResourceApplyAdam(var=variable.handle, m=m, v=v, grad=gradient, **scalars)

    def _scalars(
        self, dtype: tf.DType, learning_rate: Any, factor: Any, mask: tf.Tensor | None
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Returns a factor of gradients and the scalars of `ResourceApplyAdam`.

        Where the mask is false, an update with them changes nothing.
        """
        rate, factor = (tf.cast(x, dtype) for x in (learning_rate, 1 if factor is None else factor))
        beta1, beta2 = tf.constant(self.beta_1, dtype), tf.constant(self.beta_2, dtype)
        if mask is not None:
            rate, factor = (tf.where(mask, x, tf.zeros([], dtype)) for x in (rate, factor))
            beta1, beta2 = (tf.where(mask, x, tf.ones([], dtype)) for x in (beta1, beta2))
        power1, power2 = self._powers(dtype)
        powers = {"beta1_power": power1, "beta2_power": power2}
        epsilon = tf.constant(self.epsilon, dtype)
        return factor, {"lr": rate, "beta1": beta1, "beta2": beta2, "epsilon": epsilon, **powers}

    def _clip_factor(self, packed: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the factor of all gradients, by which their global norm is clipped."""
        widest = max({gradient.dtype for gradient in packed}, key=lambda dtype: dtype.size)
        norm = tf.sqrt(2 * tf.add_n([tf.cast(tf.nn.l2_loss(g), widest) for g in packed]))
        return self.global_clipnorm / tf.maximum(norm, self.global_clipnorm) + 0 * norm

    def _powers(self, dtype: tf.DType) -> list[tf.Tensor]:
        """Returns β₁ᵗ and β₂ᵗ, for the number t of this step."""
        step = tf.cast(keras.ops.convert_to_tensor(self.iterations), dtype) + 1
        return [tf.pow(tf.constant(beta, dtype), step) for beta in (self.beta_1, self.beta_2)]

    def _step(
        self, group: Group, gradient: tf.Tensor, rate: tf.Tensor, m: tf.Tensor, v: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """Returns the packed changes to subtract from a group's variables, and its new moments."""
        m += (gradient - m) * (1 - self.beta_1)
        v += (tf.square(gradient) - v) * (1 - self.beta_2)
        power1, power2 = self._powers(rate.dtype)
        rate *= tf.sqrt(1 - power2) / (1 - power1)
        return rate * m / (tf.sqrt(v) + self.epsilon), m, v
