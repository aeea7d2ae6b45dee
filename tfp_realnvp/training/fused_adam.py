"""The optimizer `FusedAdam`: Adam that updates all small variables of a dtype as one vector."""

import math
import warnings
from collections.abc import Container, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import private_api, replicas
from tfp_realnvp.training.packing import Group, Packing

# Variables with at least this many elements are not packed: copying them would cost more time than
# packing saves.
_LARGE = 2**16


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class FusedAdam(keras.optimizers.Adam):
    r"""`keras.optimizers.Adam` with few operations in all, instead of ten per variable.

    The update equals Adam's. With the gradient g, step t computes

    ```
    m <- β₁ m + (1 - β₁) g,    v <- β₂ v + (1 - β₂) g²
    variable <- variable - learning_rate * sqrt(1 - β₂ᵗ) / (1 - β₁ᵗ) * m / (sqrt(v) + ε)
    ```

    `FusedAdam` updates all small variables of a dtype as one vector, and stores each of their
    moments as one vector. Packing makes construction and tracing faster (see
    `benchmarks/README.md`). Variables of 65,536 elements or more get separate updates. A variable
    without a gradient keeps its value, and its moments decay as if the gradient were zero.
    `keras.optimizers.Adam` cannot load the moments of `FusedAdam`.

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

    built: bool

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
          ValueError: if `amsgrad` is true.
        """
        if amsgrad:
            raise ValueError("FusedAdam: expected amsgrad=False, got True; keras's Adam has it.")
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **kwargs)

    def build(self, variables: Sequence[Any]) -> None:
        """Creates the optimizer's variables for a model's `variables`."""
        if self.built:
            return
        number = len(self.variables)
        try:
            # Skip `Adam.build`, which creates two moments per variable.
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
        except BaseException:
            # Undo an interrupted `build`, so that the next call builds again.
            self.built = False
            for variable in self.variables[number:]:
                self._untrack_variable(variable)
            raise

    def load_own_variables(self, store: Any) -> None:
        """Loads the moments; if they belong to other variables, only warns, as Keras' Adam does."""
        same_number = len(store.keys()) == len(self.variables)
        shapes = [tuple(variable.shape) for variable in self.variables]
        if same_number and shapes != [tuple(store[str(i)].shape) for i in range(len(shapes))]:
            warnings.warn(
                f"Skipping variable loading for optimizer '{self.name}', because the saved "
                "optimizer has variables of other shapes. If layers were frozen after `compile`, "
                "call `compile` again before you save the model.",
                stacklevel=2,
            )
            return
        super().load_own_variables(store)

    def _group_of(self, variable: Any) -> Group:
        decays = bool(self.weight_decay) and self._use_weight_decay(variable)
        group = Group(tf.as_dtype(variable.dtype), decays=decays)
        if math.prod(variable.shape) < _LARGE:
            return group
        index = self._get_variable_index(variable)
        return group._replace(element_shape=tuple(variable.shape[1:]), large_variable=index)

    def _moments_of(self, group: Group) -> tuple[str, ...]:
        """Returns the names of the moments that `_step` takes and returns."""
        return "momentum", "velocity"

    def takes_packed(self, variables: Sequence[Any]) -> bool:
        """Returns whether `apply_packed` can replace `apply` for these variables."""
        scalings = self.clipnorm, self.clipvalue, self.loss_scale_factor
        options = *scalings, self.gradient_accumulation_steps, self.use_ema
        constraints = [getattr(variable, "constraint", None) for variable in variables]
        keys, built_for = (map(self._var_key, vs) for vs in (variables, self._trainable_variables))
        return list(keys) == list(built_for) and not (any(options) or any(constraints))

    def apply_packed(self, packed: Sequence[tf.Tensor], condition: tf.Tensor) -> None:
        """Makes a step with packed gradients, summed over replicas, if `condition` is true."""
        self._update(packed, self.learning_rate, condition)
        iterations = self.iterations.value
        replicas.assign(iterations, iterations + tf.cast(condition, iterations.dtype))

    @property
    def _clips_globally(self) -> bool:
        # As in Keras, a `global_clipnorm` of 0 or less means no clipping.
        return bool(self.global_clipnorm and self.global_clipnorm > 0)

    def _clip_gradients(self, grads: Sequence[tf.Tensor]) -> Sequence[tf.Tensor]:
        # `_update` clips by the global norm.
        return grads if self._clips_globally else super()._clip_gradients(grads)

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        pass  # `_update` applies the decay.

    def _backend_update_step(
        self, grads: Sequence[tf.Tensor], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        # Keras sums gradients over replicas, even over one, with a `tf.custom_gradient`, which
        # would keep the step's graph alive until the process ends. Sum them here instead.
        gradients: dict[int, tf.Tensor] = {}
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            dense = tf.cast(tf.convert_to_tensor(gradient), variable.dtype)
            gradients[self._get_variable_index(variable)] = dense
        known = range(len(self._trainable_variables))
        missing = set(known).difference(gradients)
        for i in missing:
            variable = self._trainable_variables[i]
            gradients[i] = tf.zeros(variable.shape, variable.dtype)
        packed = replicas.sum_over_replicas(self.packing.pack([gradients[i] for i in known]))
        self._update(packed, learning_rate, missing=missing)

    def _update(
        self,
        packed: Sequence[tf.Tensor],
        learning_rate: Any,
        condition: tf.Tensor | None = None,
        missing: Container[int] = (),
    ) -> None:
        """Updates all moments, and all variables not in `missing`, unless `condition` is false."""
        if self._clips_globally:
            widest = max({gradient.dtype for gradient in packed}, key=lambda dtype: dtype.size)
            norm = tf.sqrt(2 * tf.add_n([tf.cast(tf.nn.l2_loss(g), widest) for g in packed]))
            factor = self.global_clipnorm / tf.maximum(norm, self.global_clipnorm) + 0 * norm
            packed = [tf.cast(factor, gradient.dtype) * gradient for gradient in packed]
        variables = [
            variable.value if isinstance(variable, keras.Variable) else variable
            for variable in self._trainable_variables
        ]
        for i, gradient in enumerate(packed):
            group, moments = self.packing.groups[i], [m.value for m in self._moments[i]]
            rate = tf.cast(learning_rate, group.dtype)
            old = [tf.convert_to_tensor(moment) for moment in moments]
            change, *new = self._step(group, gradient, rate, *old)
            if group.decays:
                change += rate * self.weight_decay * self.packing.pack_group(i, variables)
            if condition is not None:
                change = tf.where(condition, change, tf.zeros([], group.dtype))
                new = [tf.where(condition, *pair) for pair in zip(new, old, strict=True)]
            for moment, value in zip(moments, new, strict=True):
                private_api.assign_on_replica(moment, value)
            changes = self.packing.unpack_group(i, change)
            for index, difference in zip(self.packing.indices[i], changes, strict=True):
                if index not in missing:
                    handle = variables[index].handle
                    tf.raw_ops.AssignSubVariableOp(resource=handle, value=difference)

    def _step(
        self, group: Group, gradient: tf.Tensor, rate: tf.Tensor, m: tf.Tensor, v: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """Returns what to subtract from a group's packed variables, and the group's new moments."""
        m += (gradient - m) * (1 - self.beta_1)
        v += (tf.square(gradient) - v) * (1 - self.beta_2)
        step = tf.cast(keras.ops.convert_to_tensor(self.iterations), rate.dtype) + 1
        betas = tf.constant(self.beta_1, rate.dtype), tf.constant(self.beta_2, rate.dtype)
        power1, power2 = (tf.pow(beta, step) for beta in betas)
        rate *= tf.sqrt(1 - power2) / (1 - power1)
        return rate * m / (tf.sqrt(v) + self.epsilon), m, v
