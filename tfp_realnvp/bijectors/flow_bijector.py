"""The base class: one method for each direction returns the value and its log det."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.internal import by_position, validation
from tfp_realnvp.internal.batch_dims import call_on_events
from tfp_realnvp.internal.layer_variables import LayerVariables
from tfp_realnvp.internal.one_pass_cache import OnePassCache
from tfp_realnvp.networks import ConditionSpec

__all__ = ["FlowBijector"]

tfb = tfp.bijectors


class FlowBijector(tfb.Bijector):
    r"""A bijector on images or vectors that gives its value and log det in one pass.

    A subclass writes two methods,

    ```
    _forward_and_log_det(x, *, training, conditional_input) -> (y, fldj)   # latent -> data
    _inverse_and_log_det(y, *, training, conditional_input) -> (x, ildj)   # data -> latent
    ```

    with `fldj = log |det dy/dx|` and `ildj = log |det dx/dy|`, in nats. Log dets have the shape of
    the input without the dimensions of an event: three for images [..., H, W, C], the default, and
    one for vectors [..., D], with `event_ndims=1`. This class derives the four hooks of
    `tfb.Bijector` from the two methods. `tfd.TransformedDistribution.log_prob` calls one hook for
    the value and another one for the log det; with the cache of this class, each network is
    evaluated once.

    All hooks take two keyword arguments:

    *   `training` (Python `bool`, default `False`): normalize by batch statistics, and update the
        moving statistics once in each pass.
    *   `conditional_input` (`Tensor`): passed to the networks that take it. A bijector without such
        a network raises a `ValueError`.

    Through a distribution: `dist.log_prob(x, bijector_kwargs={'training': True})`.

    Variables of Keras layers count as the bijector's own: `bijector.trainable_variables` and
    `bijector.variables` are complete, also through `tfb.Chain`, `tfb.Invert`,
    `tfd.TransformedDistribution` and `tfd.Independent`.

    #### Example

    >>> import numpy as np, tensorflow as tf, tfp_realnvp as tfr
    >>> class Double(tfr.FlowBijector):
    ...   def __init__(self, name='double'):
    ...     super().__init__(parameters=dict(locals()), name=name)
    ...   def _forward_and_log_det(self, x, **kwargs):
    ...     return 2 * x, tf.fill(tf.shape(x)[:-3], np.float32(np.log(2) * np.prod(x.shape[-3:])))
    ...   def _inverse_and_log_det(self, y, **kwargs):
    ...     return y / 2, tf.fill(tf.shape(y)[:-3], np.float32(-np.log(2) * np.prod(y.shape[-3:])))
    >>> y, fldj = Double().forward_and_log_det(tf.ones([5, 2, 2, 1]))
    >>> fldj.shape, round(float(fldj[0]), 3)
    (TensorShape([5]), 2.773)
    """

    # The condition that the networks declare.
    _condition_spec: ConditionSpec | None = None

    # The variables of the Keras layer that `_track_layer` got.
    _layer_variables: Sequence[tf.Variable] = ()

    # `tf.Module` would find variables here that a layer no longer has.
    _TF_MODULE_IGNORED_PROPERTIES = tfb.Bijector._TF_MODULE_IGNORED_PROPERTIES | {
        "_state_variables"
    }

    _cache = OnePassCache(forward_name="_forward_with_ildj", inverse_name="_inverse_with_ildj")

    def __init__(
        self,
        *,
        event_ndims: int = 3,
        dtype: Any = tf.float32,
        is_constant_jacobian: bool = False,
        validate_args: bool = False,
        parameters: dict[str, Any],
        name: str,
    ) -> None:
        """Constructs the base.

        Args:
          event_ndims: 3 for images [..., H, W, C], 1 for vectors [..., D].
          dtype: `tf.float32` or `tf.float64`, of the values and of the log det.
          is_constant_jacobian: whether the log det is the same for all values.
          validate_args: whether to assert that inputs, results and log dets are finite, with an
            `InvalidArgumentError` that names this bijector (costs a pass over them).
          parameters: the subclass's constructor arguments, including all objects that hold
            variables. Copies, and bijectors of equal parameters, share these objects.
          name: name of the operations.

        Raises:
          TypeError: if `dtype` is not float32 or float64, or `validate_args` is not a bool.
          ValueError: if `event_ndims` is neither 1 nor 3.
        """
        dtype = validation.float_dtype(dtype, name)
        expected = f"{name}: expected event_ndims of 1 or 3"
        validation.require(event_ndims in (1, 3), expected, event_ndims)
        validation.flag(validate_args, f"{name}: expected a bool as validate_args")
        self._state_variables = self._hash = None
        self._last_array: np.ndarray | None = None
        super().__init__(
            dtype=dtype,
            is_constant_jacobian=is_constant_jacobian,
            validate_args=validate_args,
            forward_min_event_ndims=event_ndims,
            parameters=parameters,
            name=name,
        )

    def __getstate__(self) -> dict[str, Any]:
        # A copy by `copy.deepcopy` or `pickle` has other variables, and another hash.
        return {**vars(self), "_state_variables": None, "_hash": None}

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        # No parameter has a batch shape: networks and statistics are shared by the whole batch.
        return {}

    def __hash__(self) -> int:
        # TFP hashes all parameters, nested bijectors included, several times in each call.
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash

    __eq__ = tfb.Bijector.__eq__

    # Methods and properties that a subclass overrides.

    @abc.abstractmethod
    def _forward_and_log_det(
        self, x: tf.Tensor, *, training: bool = False, conditional_input: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `y` and `log |det dy/dx|`."""

    @abc.abstractmethod
    def _inverse_and_log_det(
        self, y: tf.Tensor, *, training: bool = False, conditional_input: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `x` and `log |det dx/dy|`."""

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        """Raises `ValueError` if events of `shape`, which may be partly unknown, do not fit."""

    def _assertions(self, value: tf.Tensor, inverse: bool) -> list[tf.Operation]:
        """Returns the assertions that `validate_args` makes of an input."""
        del inverse
        return [tf.debugging.assert_all_finite(value, f"{self.name}: input is not finite")]

    @property
    def event_ndims(self) -> int:
        """3 for images [..., H, W, C], 1 for vectors [..., D]."""
        return self.forward_min_event_ndims

    @property
    def accepts_conditional_input(self) -> bool:
        """Whether a network of this bijector takes `conditional_input`."""
        return False

    @property
    def layers(self) -> tuple[keras.layers.Layer, ...]:
        """The Keras layers of this bijector itself, without layers of nested bijectors."""
        return ()

    def _track_layer(self, layer: keras.layers.Layer) -> None:
        """Adds the variables of a Keras layer to this bijector. Call it before `__init__`."""
        self._layer_variables = LayerVariables(layer)

    def _trackable_children(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # `tf.train.Checkpoint` does not find all variables of a Keras 3 layer, for example those of
        # layers in tuples in a list, and leaves them out silently.
        children = super()._trackable_children(*args, **kwargs)
        variables = {f"layer_variable{i}": v for i, v in enumerate(self._layer_variables)}
        return {**children, **variables}

    @property
    def state_variables(self) -> tuple[tf.Variable, ...]:
        """The variables that results depend on: `variables`, collected once."""
        if self._state_variables is None or not self.is_built:
            self._state_variables = self._no_dependency(tuple(self.variables))
        return self._state_variables

    @property
    def is_built(self) -> bool:
        """Whether the variables of this bijector itself exist, apart from nested bijectors."""
        return all(layer.built for layer in self.layers)

    @property
    def variables_set_in_training(self) -> tuple[tf.Variable, ...]:
        """The variables of this bijector itself that a training pass writes."""
        return ()

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments that make an equal bijector with new variables.

        They are `parameters`, without the arguments through which copies share variables.
        """
        return dict(self.parameters)

    # The two public methods.

    def forward_and_log_det(
        self, x: tf.Tensor, *, training: bool = False, conditional_input: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `y = forward(x)` and `log |det dy/dx|`, in one pass.

        Args:
          x: latents, [..., H, W, C] or [..., D], of this bijector's dtype.
          training: whether to use and update batch statistics.
          conditional_input: the condition of the networks.

        Returns:
          `y`, and the log det in nats, of the leading shape of `x`.

        Raises:
          TypeError: if the dtype is not this bijector's.
          ValueError: if the shape does not fit.
        """
        options = {"training": training, "conditional_input": conditional_input}
        return self._both(x, inverse=False, **options)

    def inverse_and_log_det(
        self, y: tf.Tensor, *, training: bool = False, conditional_input: Any = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `x = inverse(y)` and `log |det dx/dy|`, in one pass.

        Args:
          y: data, [..., H, W, C] or [..., D], of this bijector's dtype.
          training: whether to use and update batch statistics.
          conditional_input: the condition of the networks.

        Returns:
          `x`, and the log det in nats, of the leading shape of `y`.

        Raises:
          TypeError: if the dtype is not this bijector's.
          ValueError: if the shape does not fit.
        """
        options = {"training": training, "conditional_input": conditional_input}
        return self._both(y, inverse=True, **options)

    # AutoGraph would convert all functions called from here, which takes longer than to trace them.
    @tf.autograph.experimental.do_not_convert
    def _both(self, value: Any, inverse: bool, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.name_scope(self.name):
            value = self._as_input(value, inverse)
            return self._outermost_pass(value, inverse=inverse, **self._cache_key(options))

    def _outermost_pass(
        self, value: tf.Tensor, *, inverse: bool, training: bool, **condition: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the value and log det of one direction, also for a batch without events."""
        options = {"inverse": inverse, "training": training}
        if training:
            # The moments of an empty batch do not exist.
            if value.shape.rank is not None and 0 in value.shape:
                raise ValueError(
                    f"{self.name}: expected at least one event for training=True, got shape "
                    f"{value.shape}."
                )
            return self.validated_pass(value, **options, **condition)
        spec, condition = self._condition_spec, condition.get("conditional_input")

        def one_pass(value: tf.Tensor, condition: Any) -> tuple[tf.Tensor, tf.Tensor]:
            if condition is not None:
                options["conditional_input"] = condition
            return self.validated_pass(value, **options)

        condition_ndims = None if spec is None or condition is None else spec.ndims_of(condition)
        return call_on_events(one_pass, value, self.event_ndims, condition, condition_ndims)

    # TFP's hooks, derived.

    def _forward_with_ildj(self, x: tf.Tensor, **kwargs: Any) -> tuple[tf.Tensor, dict]:
        y, fldj = self._outermost_pass(x, inverse=False, **kwargs)
        return y, {"ildj": -fldj}

    def _inverse_with_ildj(self, y: tf.Tensor, **kwargs: Any) -> tuple[tf.Tensor, dict]:
        x, ildj = self._outermost_pass(y, inverse=True, **kwargs)
        return x, {"ildj": ildj}

    def _forward(self, x: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        return self._cache.forward(x, **kwargs)

    def _inverse(self, y: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        return self._cache.inverse(y, **kwargs)

    def _forward_log_det_jacobian(self, x: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        return -self._cache.forward_attributes(x, **kwargs)["ildj"]

    def _inverse_log_det_jacobian(self, y: tf.Tensor, **kwargs: Any) -> tf.Tensor:
        return self._cache.inverse_attributes(y, **kwargs)["ildj"]

    def _call_forward(self, x: Any, name: str, **kwargs: Any) -> tf.Tensor:
        x = self._as_input(x, inverse=False)
        return super()._call_forward(x, name, **self._cache_key(kwargs))

    def _call_inverse(self, y: Any, name: str, **kwargs: Any) -> tf.Tensor:
        y = self._as_input(y, inverse=True)
        return super()._call_inverse(y, name, **self._cache_key(kwargs))

    def _call_forward_log_det_jacobian(
        self, x: Any, event_ndims: Any, name: str, **kwargs: Any
    ) -> tf.Tensor:
        x = self._as_input(x, inverse=False)
        kwargs = self._cache_key(kwargs)
        return super()._call_forward_log_det_jacobian(x, event_ndims, name, **kwargs)

    def _call_inverse_log_det_jacobian(
        self, y: Any, event_ndims: Any, name: str, **kwargs: Any
    ) -> tf.Tensor:
        y = self._as_input(y, inverse=True)
        kwargs = self._cache_key(kwargs)
        return super()._call_inverse_log_det_jacobian(y, event_ndims, name, **kwargs)

    def _forward_event_shape(self, input_shape: tf.TensorShape) -> tf.TensorShape:
        self._check_shape(input_shape, inverse=False)
        return input_shape

    def _inverse_event_shape(self, output_shape: tf.TensorShape) -> tf.TensorShape:
        self._check_shape(output_shape, inverse=True)
        return output_shape

    # Checks.

    def _as_input(self, value: Any, inverse: bool) -> tf.Tensor:
        if hasattr(value, "dtype"):
            dtype = tf.as_dtype(value.dtype)
            if dtype != self.dtype:
                advice = f"cast them, `tf.cast(x, '{self.dtype.name}')`"
                if self.event_ndims == 3 and dtype.is_integer:
                    advice = (
                        "gray levels become continuous with noise, `tfr.dequantize(x, seed=(0, 1))`"
                    )
                raise TypeError(
                    f"{self.name}: expected {self.dtype.name} values, got {dtype.name}; {advice}."
                )
        value = tf.convert_to_tensor(value, dtype=self.dtype)
        self._check_shape(value.shape, inverse)
        return value

    def _check_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape.rank is None:
            return
        ndims = self.event_ndims
        if shape.rank < ndims:
            events = {1: "vectors [..., size]", 3: "images [..., height, width, channels]"}[ndims]
            raise ValueError(
                f"{self.name}: expected {events}, of rank at least {ndims}, got shape {shape}."
            )
        if ndims == 3 and 0 in shape[-ndims:]:
            raise ValueError(f"{self.name}: expected images with pixels, got shape {shape}.")
        self._check_event_shape(shape[-ndims:], inverse)

    # Log dets.

    def _sum_over_event(self, log_dets: tf.Tensor) -> tf.Tensor:
        """Returns the log det of an elementwise map from the log dets of its elements."""
        by_position.record(log_dets)
        return tf.reduce_sum(log_dets, axis=list(range(-self.event_ndims, 0)))

    def _log_det_of_positions(self, value: tf.Tensor, log_det: tf.Tensor | float) -> tf.Tensor:
        """Returns the log det of a map that has the log det `log_det` at each position."""
        shape, positions = tf.shape(value), value.shape[-self.event_ndims : -1]
        if by_position.is_collecting():
            log_dets = tf.fill(shape[:-1], tf.cast(log_det, value.dtype))
            by_position.record(log_dets[..., tf.newaxis])
        # A Python number, where possible, makes a graph that is traced faster.
        num_positions = positions.num_elements()
        if num_positions is None:
            num_positions = tf.cast(tf.reduce_prod(shape[-self.event_ndims : -1]), value.dtype)
        return tf.fill(shape[: -self.event_ndims], tf.cast(log_det * num_positions, value.dtype))

    def _cache_key(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Returns the keyword arguments in one form, so that equivalent calls share results."""
        kwargs = dict(kwargs)
        training = kwargs.pop("training", False)
        condition = kwargs.pop("conditional_input", None)
        if kwargs:
            raise TypeError(
                f"{self.name}: expected the keyword arguments `training` and `conditional_input`, "
                f"got {sorted(kwargs)}."
            )
        if not (training is None or isinstance(training, (bool, np.bool_))):
            raise TypeError(f"{self.name}: expected a Python bool as `training`, got {training!r}.")
        if condition is None:
            return {"training": bool(training)}
        if not self.accepts_conditional_input:
            raise ValueError(
                f"{self.name}: got a `conditional_input`, but no network here takes one: expected "
                "a network whose call has an argument of that name."
            )
        return {"training": bool(training), "conditional_input": self._unchanging(condition)}

    def _unchanging(self, condition: Any) -> Any:
        """Returns a condition that does not change later: TFP's cache compares identities."""
        if isinstance(condition, (tf.Variable, keras.Variable)):
            return tf.convert_to_tensor(condition)
        if not isinstance(condition, np.ndarray):
            return condition
        last = self._last_array
        if last is None or _contents(last) != _contents(condition):
            self._last_array = last = condition.copy()
        return last

    def validated_pass(
        self, value: tf.Tensor, *, inverse: bool, **options: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the value and log det of one direction, with the checks of `validate_args`."""
        with by_position.required(self.name):
            return self._validated_pass(value, inverse, **options)

    def _validated_pass(
        self, value: tf.Tensor, inverse: bool, **options: Any
    ) -> tuple[tf.Tensor, tf.Tensor]:
        one_pass = self._inverse_and_log_det if inverse else self._forward_and_log_det
        if not self.validate_args:
            return one_pass(value, **options)
        # In eager mode an assertion that holds returns `None`.
        assertions = [a for a in self._assertions(value, inverse) if a is not None]
        with tf.control_dependencies(assertions):
            result, log_det = one_pass(tf.identity(value), **options)
        results = ("latents" if inverse else "data", result), ("log dets", log_det)
        assertions = [
            tf.debugging.assert_all_finite(tensor, f"{self.name}: expected finite {what}")
            for what, tensor in results
        ]
        with tf.control_dependencies([a for a in assertions if a is not None]):
            return tf.identity(result), tf.identity(log_det)


def _contents(array: np.ndarray) -> tuple[np.dtype, tuple[int, ...], bytes]:
    return array.dtype, array.shape, array.tobytes()
