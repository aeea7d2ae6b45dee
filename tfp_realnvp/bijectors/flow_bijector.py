"""The base class of this package's bijectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.call_context import Pass
from tfp_realnvp.bijectors.tfp_interface import TFPInterface
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.layer_variables import LayerVariables

__all__ = ["FlowBijector"]

tfb = tfp.bijectors


class FlowBijector(TFPInterface):
    r"""A bijector on images or vectors that computes value and log det in one pass.

    A subclass writes two methods,

    ```
    _forward_and_log_det(x, p) -> (y, fldj)   # latent -> data
    _inverse_and_log_det(y, p) -> (x, ildj)   # data -> latent
    ```

    with `fldj = log |det dy/dx|` and `ildj = log |det dx/dy|`, in nats, of the leading shape of
    images [..., H, W, C], or of vectors [..., D] with `event_ndims=1`. A log det that is equal for
    all events may be a scalar. The `Pass` p holds the options of the call.

    The base class implements all methods of `tfb.Bijector` by these two methods. A cache lets
    `log_prob` evaluate each network once. All methods take two keyword arguments:

    *   `training` (Python `bool`, default `False`), `p.training`: whether to normalize by batch
        statistics and update the moving statistics.
    *   `conditional_input` (`Tensor`), `p.condition`: the condition of the networks. Raises
        `ValueError` if no network takes one.

    Through a distribution: `dist.log_prob(x, bijector_kwargs={'training': True})`.

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

    # Name of the constructor argument that holds shared variables, which `get_config` leaves out.
    _shared_argument: str | None = None

    # Set by `_track_layers`.
    _layer_variables: Sequence[tf.Variable] = ()
    _layers: tuple[keras.layers.Layer, ...] = ()

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

        If `None`, `event_ndims`, `dtype`, `validate_args` and `name` come from `parameters`, and
        otherwise default to 3, `tf.float32`, `False` and the class name.

        Args:
          event_ndims: 3 for images [..., H, W, C], 1 for vectors [..., D].
          dtype: dtype of values and log dets, `tf.float32` or `tf.float64`.
          is_constant_jacobian: whether the log det is the same for all values.
          validate_args: whether to assert that inputs, results and log dets are finite.
          parameters: the subclass's constructor arguments, including all objects that hold
            variables. Copies share these objects, and bijectors with equal `parameters` are equal.
          name: name scope of the operations, and the start of error messages.

        Raises:
          TypeError, ValueError: if `dtype` or `event_ndims` has another value.
        """

        def option(key: str, value: Any, default: Any) -> Any:
            return parameters.get(key, default) if value is None else value

        name = option("name", name, type(self).__name__)
        event_ndims = option("event_ndims", event_ndims, 3)
        validate_args = option("validate_args", validate_args, False)
        dtype = validation.float_dtype(option("dtype", dtype, tf.float32), name)
        expected = f"{name}: expected event_ndims of 1 or 3"
        validation.require(event_ndims in (1, 3), expected, event_ndims)
        super().__init__(
            dtype=dtype,
            is_constant_jacobian=is_constant_jacobian,
            validate_args=validate_args,
            forward_min_event_ndims=event_ndims,
            parameters=parameters,
            name=name,
        )

    def __getstate__(self) -> dict[str, Any]:
        # `copy.deepcopy` and `pickle` copy the networks, which changes the hash.
        return {**vars(self), "_hash": None}

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        # No parameter has a batch shape: the whole batch shares networks and statistics.
        return {}

    @property
    def layers(self) -> tuple[keras.layers.Layer, ...]:
        """The Keras layers of this bijector, excluding nested bijectors."""
        return self._layers

    def _track_layers(self, *layers: keras.layers.Layer) -> None:
        """Adds the variables of Keras layers to this bijector. Call before `__init__`."""
        self._layers = self._no_dependency(layers)
        self._layer_variables = LayerVariables(self._layers)

    def _trackable_children(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # `tf.train.Checkpoint` silently skips some variables of Keras 3 layers, for example of
        # layers in a list of tuples.
        children = super()._trackable_children(*args, **kwargs)
        variables = {f"layer_variable{i}": v for i, v in enumerate(self._layer_variables)}
        return {**children, **variables}

    @property
    def is_built(self) -> bool:
        """Whether the variables of this bijector exist, excluding nested bijectors."""
        return all(layer.built for layer in self.layers)

    @property
    def variables_set_in_training(self) -> tuple[tf.Variable, ...]:
        """The variables that a training pass updates, excluding nested bijectors."""
        return ()

    def get_config(self) -> dict[str, Any]:
        """Returns constructor arguments that make an equal bijector with new variables.

        Saved models store them. Register your own class with
        `keras.saving.register_keras_serializable()`.
        """
        return {k: v for k, v in self.parameters.items() if k != self._shared_argument}

    # Log dets.

    def _sum_over_event(self, log_dets: tf.Tensor, p: Pass) -> tf.Tensor:
        """Returns the sum of an elementwise map's log dets over each event."""
        p.record(log_dets)
        axes = list(range(-self.event_ndims, 0))
        # With `keepdims=False`, the gradient of the sum would compute many shapes.
        return tf.squeeze(tf.reduce_sum(log_dets, axis=axes, keepdims=True), axis=axes)

    def _log_det_of_positions(
        self, value: tf.Tensor, log_det: tf.Tensor | float, p: Pass
    ) -> tf.Tensor:
        """Returns the scalar log det of a map that has the log det `log_det` at each position."""
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
