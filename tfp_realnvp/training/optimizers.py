"""Optimizers that update many variables at once: `FusedAdam` and `Muon`.

They pack variables, gradients and moments of many shapes into a few large tensors.
"""

import functools
import itertools
import math
import re
import warnings
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tfp_realnvp.internal import memoize, private_api, replicas

# Variables with at least this many elements are not packed: copying them would cost more time than
# packing saves.
_LARGE = 2**16
# Coefficients of the polynomial a s + b s³ + c s⁵. Applied five times, it maps singular values in
# [0.002, 1] to values between 0.68 and 1.21.
_COEFFICIENTS, _NUM_STEPS = (3.4445, -4.7750, 2.0315), 5
# The root mean square of an update, relative to the learning rate; about the same as Adam's.
_ROOT_MEAN_SQUARE = 0.2


class Group(NamedTuple):
    """The common properties of tensors that are packed into one tensor."""

    dtype: tf.DType
    element_shape: tuple[int, ...] = ()  # of the elements that are concatenated, `()` for numbers
    decays: bool = False  # whether the variables have weight decay
    single: int | None = None  # index of the only tensor in the group


class Packing:
    """Packs the tensors of each group into one tensor, [N, *element_shape].

    An optimizer then runs a few operations per group, instead of per variable.
    """

    def __init__(self, shapes: Sequence[Sequence[int]], groups: Sequence[Group]) -> None:
        """Constructs the packing, given the shape and the group of each tensor."""
        self.groups = list(dict.fromkeys(groups))
        # For each group, the indices of its tensors.
        self.indices = [[i for i, g in enumerate(groups) if g == group] for group in self.groups]
        self._shapes = [tuple(shape) for shape in shapes]

    @property
    def packed_shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the packed tensors."""
        return [(sum(self._numbers(i)), *g.element_shape) for i, g in enumerate(self.groups)]

    def pack(self, tensors: Sequence[Any]) -> list[tf.Tensor]:
        """Returns the packed tensor of each group."""
        return [self.pack_group(i, tensors) for i in range(len(self.groups))]

    def pack_group(self, group: int, tensors: Sequence[Any]) -> tf.Tensor:
        """Packs the tensors of the group with index `group`, out of the tensors of all groups."""
        element_shape = self.groups[group].element_shape
        shape, rank = tf.constant([-1, *element_shape]), 1 + len(element_shape)
        parts = [
            tensors[i]
            if len(self._shapes[i]) == rank and self._shapes[i][1:] == element_shape
            else tf.reshape(tensors[i], shape)
            for i in self.indices[group]
        ]
        return tf.concat(parts, axis=0) if len(parts) > 1 else tf.convert_to_tensor(parts[0])

    def unpack(self, packed: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Returns all tensors, given the packed tensor of each group."""
        tensors: dict[int, tf.Tensor] = {}
        for group, tensor in enumerate(packed):
            tensors |= zip(self.indices[group], self.unpack_group(group, tensor), strict=True)
        return [tensors[i] for i in range(len(tensors))]

    def unpack_group(self, group: int, packed: tf.Tensor) -> list[tf.Tensor]:
        """Returns the tensors of the group with index `group`, given its packed tensor."""
        numbers = self._numbers(group)
        parts = tf.split(packed, numbers) if len(numbers) > 1 else [packed]
        shapes = [self._shapes[i] for i in self.indices[group]]
        # Tensors of the same shape share a constant.
        constants = {shape: tf.constant(shape, tf.int32) for shape in set(shapes)}
        return [
            part if part.shape == shape else tf.reshape(part, constants[shape])
            for part, shape in zip(parts, shapes, strict=True)
        ]

    def index_of(self, position: int) -> int:
        """Returns the index of the tensor that contains a position in the packed tensors."""
        indices = [i for group in self.indices for i in group]
        ends = itertools.accumulate(math.prod(self._shapes[i]) for i in indices)
        return next(i for i, end in zip(indices, ends, strict=True) if position < end)

    def _numbers(self, group: int) -> list[int]:
        size = math.prod(self.groups[group].element_shape)
        return [math.prod(self._shapes[i]) // size for i in self.indices[group]]


def apply_if(
    condition: tf.Tensor,
    optimizer: keras.optimizers.Optimizer,
    gradients: Sequence[tf.Tensor],
    packed: Sequence[tf.Tensor],
    packing: Packing,
    variables: Sequence[keras.Variable],
) -> None:
    """Applies gradients if `condition` is true; otherwise changes nothing, not even moments.

    All replicas apply the sum of their gradients, clipped by the norm of the sum. `gradients`
    belong to this replica; `packed` are the sums over replicas, packed by `packing`.
    """
    if packing is getattr(optimizer, "packing", None):
        optimizer.apply_packed(packed, condition)
        return
    if not tf.distribute.has_strategy():

        def apply() -> tf.Tensor:
            optimizer.apply(gradients, variables)
            return tf.constant(True)

        tf.cond(condition, apply, lambda: tf.constant(False))
        return
    gradients = packing.unpack(packed)
    # `optimizer.apply` runs a collective operation, even with a single replica, which `tf.cond`
    # does not allow. Therefore always make the step, and undo it if `condition` is false.
    state = [variable.value for variable in (*variables, *optimizer.variables)]
    # Within a step, the learning rate can be a tensor; see `RateFactors`.
    state = [variable for variable in state if isinstance(variable, tf.Variable)]
    before = [tf.convert_to_tensor(variable) for variable in state]
    # `optimizer.apply` sums the gradients over replicas again. The gradients are sums already, so
    # only the first replica passes them, and the others pass zeros.
    replica = tf.distribute.get_replica_context().replica_id_in_sync_group
    counts = condition & tf.equal(replica, 0)
    gradients = [tf.math.multiply_no_nan(g, tf.cast(counts, g.dtype)) for g in gradients]
    optimizer.apply(gradients, variables)
    replicas.restore_unless(condition, state, before)


def packing_of(optimizer: Any, variables: Sequence[keras.Variable]) -> Packing:
    """Returns the packing of the gradients of `variables`.

    A `FusedAdam` that was built for these variables has its own packing. For other optimizers, all
    gradients of a dtype form one vector.
    """
    takes_packed = getattr(optimizer, "takes_packed", None)
    if takes_packed is not None and takes_packed(variables):
        return optimizer.packing
    return Packing([v.shape for v in variables], [Group(tf.as_dtype(v.dtype)) for v in variables])


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
        single = self._get_variable_index(variable)
        return group._replace(element_shape=tuple(variable.shape[1:]), single=single)

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
        return group._replace(element_shape=sides, single=None) if sides else group

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
    return bool(group.element_shape) and group.single is None


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
