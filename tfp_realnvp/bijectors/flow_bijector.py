"""`FlowBijector`, the base class of this package's bijectors, and `Pass`, a call's options."""

import abc
import contextlib
import contextvars
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal import batch_dims, layer_variables, replicas, validation
from tfp_realnvp.internal.bijector_cache import OnePassCache


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """The options of a call, which a flow passes on to its bijectors and their networks.

    The bijector that the user calls creates the `Pass` from its keyword arguments and from the
    surrounding context, see `call_options`. A composition passes the `Pass` on to each bijector:
    `bijector._inverse_and_log_det(y, p)`. Two `Pass`es are equal if they hold the same objects.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> y = tf.random.normal([64, 8, 8, 3])
    >>> bijector = tfr.BatchNormalization()
    >>> x, ildj = bijector._inverse_and_log_det(y, tfr.Pass(training=True))
    >>> int(bijector.moving.num_updates)
    1

    Attributes:
      training: whether to normalize by batch statistics and update the moving statistics.
      condition: the condition. A declared condition is checked and has the events' leading shape.
      recompute: whether the backward pass recomputes the networks' activations.
      statistics: the events that batch statistics average over, and their weights.
      observer: `f(bijector, value, log_det)`, called after each bijector, nested bijectors first.
      guidance: the scalar weight w of classifier-free guidance, or `None`. If the network outputs
        a(c) for the condition c and a(∅) without a condition, couplings use (1 + w) a(c) - w a(∅).
      no_condition: the embedding of ∅, of the shape of `condition`; only with `guidance`.
      terms: a list. Each bijector appends its term of the log density per position, [..., h, w]. In
        squeezed images, a position is a block of pixels.
    """

    training: bool = False
    condition: Any = None
    recompute: bool = False
    statistics: replicas.Statistics = replicas.LOCAL_STATISTICS
    observer: Callable[[tfb.Bijector, tf.Tensor, tf.Tensor], None] | None = None
    guidance: tf.Tensor | float | None = None
    no_condition: tf.Tensor | None = None
    terms: list[tf.Tensor] | None = None

    def _ids(self) -> tuple[int, ...]:
        return tuple(map(id, vars(self).values()))

    def __eq__(self, other: Any) -> bool:
        return self._ids() == other._ids() if isinstance(other, Pass) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._ids())

    def but(self, **fields: Any) -> "Pass":
        """Returns a copy with some fields replaced."""
        return dataclasses.replace(self, **fields)

    def record(self, elements: tf.Tensor) -> None:
        """Appends log densities [..., H, W, C] to `terms`, after a sum over channels."""
        if self.terms is not None:
            self.terms.append(tf.reduce_sum(elements, axis=-1))


# A map's output, and the log |det| of the map's Jacobian.
Mapped = tuple[tf.Tensor, tf.Tensor]

_NOTHING = Pass()
_surrounding = contextvars.ContextVar[Pass]("surrounding_pass", default=_NOTHING)


def surrounding_pass() -> Pass:
    """Returns a `Pass` with the options that an enclosing `surround_with` has set."""
    return _surrounding.get()


@contextlib.contextmanager
def surround_with(**fields: Any) -> Iterator[None]:
    """Sets fields of every `Pass` that a bijector creates within the context."""
    token = _surrounding.set(surrounding_pass().but(**fields))
    try:
        yield
    finally:
        _surrounding.reset(token)


@contextlib.contextmanager
def call_options(*, training: bool | None = None, conditional_input: Any = None) -> Iterator[None]:
    r"""Sets the options of distributions and bijectors that are evaluated within the context.

    Keyword arguments such as `log_prob(x, bijector_kwargs={'training': True})` reach the flow of a
    `tfd.TransformedDistribution`. The context reaches every flow, wherever TFP evaluates it: in a
    `tfd.Mixture`, a `tfd.BatchReshape`, a `tfb.Blockwise` or a `tfb.Invert`. Keyword arguments of a
    flow take precedence. Flows and base distributions without a condition ignore the context's.
    Leading shapes of conditions and of the values that a flow gets broadcast: in distributions that
    change the batch shape, such as `tfd.MixtureSameFamily`, use one condition for all events.

    Functions that trace a graph of their own, such as `FlowModel.fit` and `predict`, `tfr.log_prob`
    and `latents.encode`, take conditions as arguments. Within a context whose options would not
    reach their graph, they raise `ValueError`.

    The options apply to operations that are created within the context: enter the context within a
    `tf.function`, not around its call. TFP's own bijectors, such as `tfb.Chain`, cache results by
    tensor and ignore the context: if one is outermost, pass `tf.identity(x)` when options change.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> flows = [
    ...     tfd.TransformedDistribution(
    ...         tfd.Sample(tfd.Normal(0., 1.), [2]),
    ...         tfr.RealNVPVector(2, num_couplings=2, num_filters=4, num_classes=3))
    ...     for _ in range(2)]
    >>> mixture = tfd.Mixture(tfd.Categorical(logits=[0., 0.]), flows)
    >>> with tfr.call_options(training=True, conditional_input=[0, 2, 1, 1]):
    ...   log_prob = mixture.log_prob(tf.random.normal([4, 2]))
    >>> log_prob.shape
    TensorShape([4])

    Args:
      training: as in `FlowBijector`; `None` leaves the surrounding context's value.
      conditional_input: the condition, as in `FlowBijector`; `None` leaves the surrounding
        context's value.

    Raises:
      TypeError: if `training` is not a bool.
    """
    fields: dict[str, Any] = {}
    if training is not None:
        expected = "call_options: expected a Python bool as `training`"
        fields["training"] = validation.flag(training, expected)
    if conditional_input is not None:
        fields["condition"] = conditional_input
    with surround_with(**fields):
        yield


class FlowBijector(tfb.Bijector):
    r"""A bijector on images or vectors that computes value and log det in one pass.

    A subclass writes two methods,

    ```
    _forward_and_log_det(x, p) -> (y, fldj)   # latent -> data
    _inverse_and_log_det(y, p) -> (x, ildj)   # data -> latent
    ```

    where `fldj = log |det dy/dx|` and `ildj = log |det dx/dy|` are in nats. Their shape is the
    leading shape of the images [..., H, W, C] or, with `event_ndims=1`, of the vectors [..., D]. A
    log det that is equal for all events may be a scalar. The `Pass` p holds the options of the
    call.

    The base class derives all methods of `tfb.Bijector` from these two methods. A cache ensures
    that `log_prob` evaluates each network only once. All methods take two keyword arguments:

    *   `training` (Python `bool`, default `False`), `p.training`: whether to normalize by batch
        statistics and update the moving statistics.
    *   `conditional_input` (`Tensor`), `p.condition`: the condition of the networks. If no network
        takes a condition, passing one raises `ValueError`.

    Distributions pass these arguments on: `dist.log_prob(x, bijector_kwargs={'training': True})`.
    The context `call_options` sets their defaults.

    #### Example

    >>> import numpy as np, tensorflow as tf, tfp_realnvp as tfr
    >>> class Double(tfr.FlowBijector):
    ...   def __init__(self, name='double'):
    ...     super().__init__(parameters=dict(locals()), name=name)
    ...   def _forward_and_log_det(self, x, p):
    ...     return 2 * x, tf.fill(tf.shape(x)[:-3], np.float32(np.log(2) * np.prod(x.shape[-3:])))
    ...   def _inverse_and_log_det(self, y, p):
    ...     return y / 2, tf.fill(tf.shape(y)[:-3], np.float32(-np.log(2) * np.prod(y.shape[-3:])))
    >>> y, fldj = Double().forward_and_log_det(tf.ones([5, 2, 2, 1]))
    >>> fldj.shape, round(float(fldj[0]), 3)
    (TensorShape([5]), 2.773)
    """

    # Name of the constructor argument with shared variables; `get_config` omits this argument.
    _shared_argument: str | None = None

    # Whether a network takes `conditional_input`, and the condition that networks declare.
    accepts_conditional_input = False
    _condition_spec: ConditionSpec | None = None

    # Set by `_track_layers`.
    _layer_variables: Sequence[tf.Variable] = ()
    _layers: tuple[keras.layers.Layer, ...] = ()

    _hash: int | None = None

    _cache = OnePassCache(forward_name="_forward_with_ildj", inverse_name="_inverse_with_ildj")

    def __init__(
        self,
        *,
        event_ndims: int | None = None,
        dtype: Any = None,
        is_constant_jacobian: bool = False,
        validate_args: bool | None = None,
        parameters: dict[str, Any],
        name: str | None = None,
    ) -> None:
        """Constructs the base.

        `event_ndims`, `dtype`, `validate_args` and `name` default to their values in `parameters`.
        Without a value there, they are 3, `tf.float32`, `False` and the class name, in this order.

        Args:
          event_ndims: 3 for images [..., H, W, C], 1 for vectors [..., D].
          dtype: dtype of values and log dets, `tf.float32` or `tf.float64`.
          is_constant_jacobian: whether the log det is the same for all values.
          validate_args: whether to assert that inputs, results and log dets are finite.
          parameters: the subclass's constructor arguments, including all objects that hold
            variables. Copies share these objects, and bijectors with equal `parameters` are equal.
          name: name scope of the operations, and the start of error messages.

        Raises:
          TypeError, ValueError: if `dtype` or `event_ndims` is none of the values above.
        """

        def option(key: str, value: Any, default: Any) -> Any:
            return parameters.get(key, default) if value is None else value

        name = option("name", name, type(self).__name__)
        event_ndims = option("event_ndims", event_ndims, 3)
        validate_args = option("validate_args", validate_args, False)
        dtype = validation.float_dtype(option("dtype", dtype, tf.float32), name)
        expected = f"{name}: expected event_ndims of 1 or 3"
        validation.require(event_ndims in (1, 3), expected, event_ndims)
        # 3 for images [..., H, W, C], 1 for vectors [..., D].
        self.event_ndims: int = event_ndims
        super().__init__(
            dtype=dtype,
            is_constant_jacobian=is_constant_jacobian,
            validate_args=validate_args,
            forward_min_event_ndims=event_ndims,
            parameters=parameters,
            name=name,
        )

    # Methods for subclasses.

    @abc.abstractmethod
    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `y` and `log |det dy/dx|`."""

    @abc.abstractmethod
    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `x` and `log |det dx/dy|`."""

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        """Returns the shape of an input event, [H, W, C] or [D]; unknown sizes are `None`."""
        return tf.TensorShape([None] * self.event_ndims)

    def _event_shape(self, shape: Any, inverse: bool) -> Any:
        """Returns the output shape as a `tf.TensorShape` or a tensor, like the input shape."""
        if isinstance(shape, tf.TensorShape):
            if shape.rank == 0:
                events = self._expected_shape(inverse)
                raise ValueError(
                    f"{self.name}: expected a distribution of {events} events, got scalars; use "
                    "`tfd.Sample(base, event_shape)`, or for a batch of scalars "
                    f"`tfd.Independent(base, {self.event_ndims})`."
                )
            self._check_shape(shape, inverse)
        return shape

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        """Raises `ValueError` if the bijector cannot take events of this (partly known) shape."""

    def _assertions(self, value: tf.Tensor, inverse: bool) -> list[tf.Operation]:
        """Returns the assertions about an input that `validate_args` adds."""
        return [tf.debugging.assert_all_finite(value, f"{self.name}: input is not finite")]

    @property
    def layers(self) -> tuple[keras.layers.Layer, ...]:
        """The Keras layers of this bijector, excluding nested bijectors."""
        return self._layers

    def _track_layers(self, *layers: keras.layers.Layer) -> None:
        """Adds the variables of Keras layers to this bijector. Call before `__init__`."""
        self._layers = self._no_dependency(layers)
        self._layer_variables = layer_variables.LayerVariables(self._layers)

    def _trackable_children(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # `tf.train.Checkpoint` silently skips some variables of Keras 3 layers, for example the
        # variables of layers in a list of tuples.
        variables = {f"layer_variable{i}": v for i, v in enumerate(self._layer_variables)}
        return {**super()._trackable_children(*args, **kwargs), **variables}

    @property
    def is_built(self) -> bool:
        """Whether the variables of this bijector exist, excluding nested bijectors."""
        return all(map(layer_variables.is_built, self.layers))

    @property
    def variables_set_in_training(self) -> tuple[tf.Variable, ...]:
        """The variables that a training pass updates, excluding nested bijectors."""
        return ()

    def get_config(self) -> dict[str, Any]:
        """Returns constructor arguments that make an equal bijector with new variables.

        Saved models store these arguments. Register your own class with
        `keras.saving.register_keras_serializable()`.
        """
        return {k: v for k, v in self.parameters.items() if k != self._shared_argument}

    # Log dets.

    def _sum_over_event(self, log_dets: tf.Tensor, p: Pass) -> tf.Tensor:
        """Returns the sum of an elementwise map's log dets over each event."""
        p.record(log_dets)
        axes = list(range(-self.event_ndims, 0))
        # With `keepdims=False`, the gradient of the sum would need many shape operations.
        return tf.squeeze(tf.reduce_sum(log_dets, axis=axes, keepdims=True), axis=axes)

    def _log_det_of_positions(
        self, value: tf.Tensor, log_det: tf.Tensor | float, p: Pass
    ) -> tf.Tensor:
        """Returns the total log det, a scalar, of a map with the same log det at each position."""
        if p.terms is not None:
            log_dets = tf.fill(tf.shape(value)[:-1], tf.cast(log_det, value.dtype))
            p.record(log_dets[..., tf.newaxis])
        # Skip the multiplication by zero, so that graphs trace faster.
        if not tf.is_tensor(log_det) and log_det == 0:
            return tf.zeros([], value.dtype)
        num_positions = value.shape[-self.event_ndims : -1].num_elements()
        if num_positions is None:
            sides = tf.shape(value)[-self.event_ndims : -1]
            num_positions = tf.cast(tf.reduce_prod(sides), value.dtype)
        return tf.cast(log_det * num_positions, value.dtype)

    # The two public methods.

    def forward_and_log_det(
        self, x: tf.Tensor, *, training: bool | None = None, conditional_input: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `y = forward(x)` and `log |det dy/dx|`, in nats, in one pass.

        Args:
          x: latents, [..., H, W, C] or [..., D], a tensor of this bijector's dtype or an array.
          training: whether to normalize by batch statistics and update the moving statistics.
          conditional_input: the condition of the networks.

        Raises:
          TypeError: if a tensor has another dtype, or images are an integer array.
          ValueError: if the shape of the input does not fit.
        """
        return self._both(x, inverse=False, training=training, conditional_input=conditional_input)

    def inverse_and_log_det(
        self, y: tf.Tensor, *, training: bool | None = None, conditional_input: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `x = inverse(y)` and `log |det dx/dy|`; see `forward_and_log_det`."""
        return self._both(y, inverse=True, training=training, conditional_input=conditional_input)

    # AutoGraph would convert all functions called from here, which takes longer than tracing them.
    @tf.autograph.experimental.do_not_convert
    def _both(self, value: Any, inverse: bool, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.name_scope(self.name):
            value, options = self._as_input(value, inverse), self._cache_key(options)
            value, attributes = self._outermost_pass(value, inverse=inverse, **options)
            return value, attributes["ildj"] if inverse else -attributes["ildj"]

    # TFP's hooks.

    def __hash__(self) -> int:
        # In each call TFP hashes all parameters, nested bijectors included, several times.
        # Parameters never change, so we keep the hash.
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash

    def __getstate__(self) -> dict[str, Any]:
        # `copy.deepcopy` and `pickle` copy the networks, which changes the hash.
        return {**vars(self), "_hash": None}

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        # No parameter has a batch shape: the whole batch shares networks and statistics.
        return {}

    def _call_forward(self, x: Any, *args: Any, **kwargs: Any) -> tf.Tensor:
        x = self._as_input(x, inverse=False)
        return super()._call_forward(x, *args, **self._cache_key(kwargs))

    def _call_inverse(self, y: Any, *args: Any, **kwargs: Any) -> tf.Tensor:
        y = self._as_input(y, inverse=True)
        return super()._call_inverse(y, *args, **self._cache_key(kwargs))

    def _call_forward_log_det_jacobian(self, x: Any, *args: Any, **kwargs: Any) -> tf.Tensor:
        x = self._as_input(x, inverse=False)
        return super()._call_forward_log_det_jacobian(x, *args, **self._cache_key(kwargs))

    def _call_inverse_log_det_jacobian(self, y: Any, *args: Any, **kwargs: Any) -> tf.Tensor:
        y = self._as_input(y, inverse=True)
        return super()._call_inverse_log_det_jacobian(y, *args, **self._cache_key(kwargs))

    def forward_dtype(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the output dtype. `tfd.TransformedDistribution` passes its base's dtype here."""
        if args and isinstance(args[0], tf.DType) and args[0] != self.dtype:
            raise TypeError(
                f"{self.name}: expected a distribution of dtype {self.dtype.name}, got "
                f"{args[0].name}; construct the bijector with `dtype='{args[0].name}'`."
            )
        return super().forward_dtype(*args, **kwargs)

    def _forward_event_shape(self, input_shape: Any) -> Any:
        return self._event_shape(input_shape, inverse=False)

    def _inverse_event_shape(self, output_shape: Any) -> Any:
        return self._event_shape(output_shape, inverse=True)

    _forward_event_shape_tensor = _forward_event_shape
    _inverse_event_shape_tensor = _inverse_event_shape

    # Checks.

    def _as_input(self, value: Any, inverse: bool) -> tf.Tensor:
        # As in TFP, float arrays and lists become tensors of the bijector's dtype. Integer vectors
        # do too; integer images are an error, because gray levels need noise.
        dtype = getattr(value, "dtype", self.dtype)
        kinds = "f" if self.event_ndims == 3 else "fiu"
        if not (isinstance(dtype, np.dtype) and dtype.kind in kinds):
            dtype = tf.as_dtype(dtype)
            if dtype != self.dtype:
                advice = f"cast them, `tf.cast(x, '{self.dtype.name}')`"
                if self.event_ndims == 3 and dtype.is_integer:
                    advice = "add noise to gray levels, `tfr.dequantize(x, seed=(0, 1))`"
                raise TypeError(
                    f"{self.name}: expected {self.dtype.name} values, got {dtype.name}; {advice}."
                )
        value = tf.convert_to_tensor(value, dtype=self.dtype)
        self._check_shape(value.shape, inverse)
        return value

    def _check_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape.rank is None:
            return
        ndims, expected = self.event_ndims, self._expected_shape(inverse)
        event = shape[-ndims:]
        if not event.is_compatible_with(expected):
            events = {1: "vectors", 3: "images"}[ndims]
            names = ("height", "width", "channels") if ndims == 3 else ("size",)
            sizes = [name if n is None else str(n) for name, n in zip(names, expected, strict=True)]
            events += f" [..., {', '.join(sizes)}]"
            raise ValueError(f"{self.name}: expected {events}, got shape {shape}.")
        if ndims == 3 and 0 in event:
            raise ValueError(f"{self.name}: expected images with pixels, got shape {shape}.")
        self._check_event_shape(event.merge_with(expected), inverse)

    def _cache_key(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns normalized options of a call, so that equivalent calls share cached results."""
        kwargs, surrounding = dict(kwargs), surrounding_pass()
        training = kwargs.pop("training", None)
        condition = kwargs.pop("conditional_input", None)
        validation.known_options(kwargs, ("training", "conditional_input"), self.name)
        training = surrounding.training if training is None else training
        expected = f"{self.name}: expected a Python bool as `training`"
        key = {
            "training": validation.flag(training, expected),
            "surrounding": surrounding.but(training=False, condition=None),
        }
        if condition is not None and not self.accepts_conditional_input:
            raise ValueError(
                f"{self.name}: got a `conditional_input`, but no network here takes one: expected "
                "a network whose call has an argument of that name."
            )
        if condition is None and self.accepts_conditional_input:
            condition = surrounding.condition
        if condition is None:
            return key
        if isinstance(condition, (tf.Variable, keras.Variable)):
            condition = tf.convert_to_tensor(condition)
        elif isinstance(condition, np.ndarray) and not condition.dtype.hasobject:
            condition = _Array(condition.dtype, condition.shape, condition.tobytes())
        return {**key, "conditional_input": condition}

    # The pass.

    def _outermost_pass(
        self,
        value: tf.Tensor,
        *,
        inverse: bool,
        training: bool = False,
        conditional_input: Any = None,
        surrounding: Pass | None = None,
        has_events: bool = False,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Maps `value` by the bijector that the user calls; returns the result and `{"ildj": ...}`.

        `has_events=True` promises that the batch is not empty, which saves operations.
        """
        # An empty batch has no moments.
        is_empty = value.shape.rank is not None and 0 in value.shape
        expected = f"{self.name}: expected at least one event for training=True"
        validation.require(not (training and is_empty), expected, value.shape)
        spec, condition = self._condition_spec, conditional_input
        if isinstance(condition, _Array):
            condition = np.frombuffer(condition.data, condition.dtype).reshape(condition.shape)
        ndims = self.event_ndims
        if spec is not None:
            condition = spec.as_tensor(condition, self.name, self.dtype, value)
            value, condition = batch_dims.broadcast_batch(value, ndims, condition, spec.event_ndims)
        like = value
        if like.shape.rank is None:
            value = batch_dims.flatten_batch(value, ndims)
            if spec is not None:
                condition = batch_dims.flatten_batch(condition, spec.event_ndims)
        batch, event = value.shape[:-ndims], value.shape[-ndims:]
        shape = batch.concatenate(self._expected_shape(inverse).merge_with(event))
        if shape != value.shape:
            value = tf.ensure_shape(value, shape)
        events = value
        is_filled = not (training or has_events) and batch_dims.may_be_empty(events, ndims)
        if is_filled:
            value = batch_dims.without_empty_axes(value)
            condition = batch_dims.without_empty_axes(condition)
        p = (surrounding or surrounding_pass()).but(training=training, condition=condition)
        value, log_det = self._checked_pass(value, p, inverse)
        if log_det.shape.rank == 0:
            # The log det is equal for all events.
            log_det = tf.fill(tf.shape(value)[:-ndims], log_det)
        if is_filled:
            value = batch_dims.cut_to_batch(value, events, ndims, ndims)
            log_det = batch_dims.cut_to_batch(log_det, events, ndims, 0)
        if like.shape.rank is None:
            value = batch_dims.unflatten_batch(value, like, ndims)
            log_det = batch_dims.unflatten_batch(log_det, like, ndims)
        return value, {"ildj": log_det if inverse else -log_det}

    _forward_with_ildj = functools.partialmethod(_outermost_pass, inverse=False)
    _inverse_with_ildj = functools.partialmethod(_outermost_pass, inverse=True)

    def _checked_pass(self, value: tf.Tensor, p: Pass, inverse: bool) -> Mapped:
        """Returns the value and log det in one direction, with the checks of `validate_args`."""
        self._check_shape(value.shape, inverse)
        if self.validate_args:
            value = _after(self._assertions(value, inverse), value)
        one_pass = self._inverse_and_log_det if inverse else self._forward_and_log_det
        value, log_det = one_pass(value, p)
        if self.validate_args:
            kind = "latents" if inverse else "data"
            assertions = [
                tf.debugging.assert_all_finite(tensor, f"{self.name}: expected finite {what}")
                for what, tensor in ((kind, value), ("log dets", log_det))
            ]
            value, log_det = _after(assertions, value), _after(assertions, log_det)
        return value, log_det


def _after(assertions: list[tf.Operation | None], tensor: tf.Tensor) -> tf.Tensor:
    with tf.control_dependencies(assertions):
        return tf.identity(tensor)


@dataclasses.dataclass(frozen=True)
class _Array:
    """A cache key with a copy of an array: the caller can change the array between calls."""

    dtype: np.dtype
    shape: tuple[int, ...]
    data: bytes
