"""What data a distribution takes: events, their conditions and their weights."""

import contextlib
import warnings
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfp_realnvp import pixels
from tfp_realnvp.bijectors.flow_bijector import surround_with
from tfp_realnvp.distributions import routing
from tfp_realnvp.internal import validation

_WEIGHTS = "FlowModel: expected finite sample weights of at least 0"
_NO_CONDITION = (
    "since the distribution takes none. RealNVPImage and RealNVPVector take labels with "
    "`num_classes=K`, and vectors or images with `conditional_event_shape=[...]`; a `ClassMixture` "
    "as base takes labels."
)
# Names of events and of their axes in error messages, by the rank of an event.
_NAMES = {3: ("images", "height, width, channels"), 1: ("vectors", "size")}


class Batch(NamedTuple):
    """Events [B, ...], their conditions or `None`, and their weights [B] or `None`."""

    events: Any
    condition: Any = None
    weights: Any = None


class Check(NamedTuple):
    """A rule about the values of a batch: a scalar `bool`, and the error message if it is false."""

    is_valid: Any
    message: str


def parse(data: Any) -> Batch:
    """Finds events, conditions and weights in data of any form that `FlowModel.fit` takes.

    Data are events; a tuple of events, conditions and weights; a list of events and conditions; or
    a dictionary with `'image'` or, for vectors, `'x'`; `'conditional_input'` or `'label'`; and
    `'sample_weight'`. The events in a tuple or list can also be a tuple or dictionary. This
    function checks no values.
    """
    if isinstance(data, dict):
        keys = [key for key in ("image", "x") if key in data]
        if len(keys) != 1:
            raise ValueError(
                "expected a dictionary with 'image' (images) or 'x' (vectors), and optionally "
                f"'conditional_input' or 'label', and 'sample_weight', got {sorted(data)}."
            )
        condition = data.get("conditional_input", data.get("label"))
        return Batch(data[keys[0]], condition, data.get("sample_weight"))
    if not isinstance(data, (tuple, list)):
        return Batch(data)
    inner, rest = parse(data[0]), data[1 : 3 if isinstance(data, tuple) else 2]
    parts = zip(("condition", "weights"), rest, strict=False)
    return inner._replace(**{name: part for name, part in parts if part is not None})


def as_arrays(data: Any) -> Any:
    """Converts lists of numbers and pandas frames to arrays, and a pandas series to a column.

    Keras takes lists of numbers for lists of arrays, and Keras 3.10 fails on a tuple that ends in
    `None`.
    """
    if hasattr(data, "to_numpy"):
        values = data.to_numpy()
        kinds = {getattr(dtype, "kind", "O") for dtype in np.ravel(getattr(data, "dtypes", "O"))}
        if values.dtype == object and kinds <= {*"biuf"}:
            # Columns of numbers and bools, or of pandas' nullable dtypes.
            values = data.to_numpy(np.float64, na_value=np.nan)
        return values if values.ndim > 1 else values[:, np.newaxis]
    if isinstance(data, dict):
        return {key: as_arrays(part) for key, part in data.items()}
    if not isinstance(data, (tuple, list)):
        return data
    if isinstance(data, list) and all(np.ndim(leaf) == 0 for leaf in tf.nest.flatten(data)):
        return np.asarray(data)
    parts = list(map(as_arrays, data))
    while len(parts) > 1 and parts[-1] is None:
        parts.pop()
    return tuple(parts) if isinstance(data, tuple) else parts  # a named tuple becomes a tuple


class DataSpec:
    """Declares the data of a distribution, and parses and checks each batch once; immutable.

    Attributes:
      distribution, dequantize, dequantizer, seed: as in `FlowModel`.
      event_ndims: rank of an event: 3 for images, 1 for vectors.
      num_values: number of gray levels of the flow; `None` for any real numbers.
      noise: a `UniformNoise`, `NoNoise` or `VariationalDequantization`.
      takes_condition: whether the distribution takes a condition.
      condition_spec: the declared condition; `None` without one.
    """

    def __init__(
        self,
        distribution: Any,
        dequantize: bool | None = None,
        dequantizer: Any = None,
        seed: int = 0,
    ) -> None:
        """Constructs the specification; the arguments and errors are those of `FlowModel`."""
        expected = "FlowModel: expected a tfd.Distribution"
        routing.check_distribution(distribution, expected, distribution)
        rank = distribution.event_shape.rank
        self.event_ndims = 3 if rank is None else rank
        fits = self.event_ndims in _NAMES and distribution.batch_shape.rank == 0
        expected += " over images [height, width, channels] or vectors [size], without batch "
        validation.require(fits, f"{expected}dimensions", distribution)
        self.distribution, self.dequantizer = distribution, dequantizer
        self.dequantize = self.event_ndims == 3 if dequantize is None else dequantize
        validation.flag(self.dequantize, "FlowModel: expected a bool as dequantize")
        if self.dequantize:
            self._check_channels_last()
        when = "with dequantize=True"
        validation.only(dequantizer, "a dequantizer", self.dequantize, when, "FlowModel")
        self.num_values = routing.find_num_values(distribution)
        if dequantizer is not None and self.num_values is not None:
            expected = f"FlowModel: expected a dequantizer of num_values={self.num_values}"
            fits = dequantizer.num_values == self.num_values
            validation.require(fits, f"{expected}, the flow's", dequantizer.num_values)
        expected = "FlowModel: expected an int32 seed"
        self.seed = validation.integer(seed, -(2**31), expected, 2**31)
        uniform = pixels.UniformNoise if self.dequantize else pixels.NoNoise
        self.noise = uniform(distribution.dtype) if dequantizer is None else dequantizer
        self.takes_condition = routing.takes_condition(distribution)
        self.condition_spec = routing.find_condition_spec(distribution)
        self._name, self._axes = _NAMES[self.event_ndims]

    def __setattr__(self, name: str, value: Any) -> None:
        """Raises `AttributeError` for a new value: traced graphs would not follow it."""
        if hasattr(self, name):
            raise AttributeError(f"DataSpec: expected no assignment to {name!r}; make another one.")
        super().__setattr__(name, value)

    @property
    def modules(self) -> list[Any]:
        """The distribution, and the dequantizer if there is one."""
        return [self.distribution, *([] if self.dequantizer is None else [self.dequantizer])]

    def build_networks(self) -> None:
        """Creates the variables that parts would create in their first call.

        Such parts are bijectors of this package, and layers of tf-keras, such as TFP's networks.

        Raises:
          ValueError: if variables are missing, and the distribution has no known event shape.
        """
        parts = [part for module in self.modules for part in module.submodules]
        if all(getattr(part, "is_built", getattr(part, "built", True)) for part in parts):
            return
        shape, dtype = self.distribution.event_shape, self.distribution.dtype
        expected = "FlowModel: expected built networks, or a distribution of known event_shape"
        validation.require(shape.is_fully_defined(), expected, shape)
        event, condition, spec = tf.zeros([1, *shape], dtype), None, self.condition_spec
        if spec is not None:
            # A condition image without a fixed size has the size of the data.
            sizes = zip(spec.event_shape, shape, strict=False)
            sizes = [size or of_data for size, of_data in sizes]
            condition = tf.zeros([1, *sizes], spec.tensor_spec(dtype).dtype)
        with surround_with(condition=condition):
            self.distribution.log_prob(event)
        if self.dequantizer is not None:
            self.dequantizer.dequantize(event, seed=[0, 0])

    def batch(
        self, data: Any, *, ignores_labels: bool = True, have_noise: bool = False
    ) -> tuple[Batch, list[Check]]:
        """Parses a batch, checks shapes and dtypes, and converts its parts to tensors.

        Args:
          data: see `parse`.
          ignores_labels: whether to leave out conditions, with a warning, if the distribution takes
            none; otherwise they raise an error.
          have_noise: whether images are continuous values, to which noise was added.

        Returns:
          The batch: events as in the data; conditions, int32 labels or floats of the distribution's
          dtype; and weights [B] of this dtype. Also the checks of values that are unknown here,
          because a graph is traced.

        Raises:
          ValueError: if known values, shapes or dtypes do not fit the distribution.
        """
        events, condition, weights = parse(data)
        if condition is not None and not self.takes_condition:
            if not ignores_labels:
                self._refuse_labels(condition)
            warnings.warn(
                f"FlowModel: the labels of the dataset are not used by {self.distribution.name}, "
                f"{_NO_CONDITION} `dataset.map(lambda x, y: x)` leaves labels out.",
                stacklevel=2,
            )
        if isinstance(events, tf.SparseTensor):
            raise ValueError(
                f"FlowModel: expected dense {self._name}, got a SparseTensor; "
                "`dataset.map(tf.sparse.to_dense)` converts it."
            )
        events = tf.convert_to_tensor(events)
        self._check_event_shape(events)
        if events.dtype.is_complex or events.dtype == tf.string:
            raise ValueError(
                f"FlowModel: expected {self._name} of real numbers, got dtype {events.dtype.name}."
            )
        condition = condition if self.takes_condition else None
        condition = routing.as_conditions(self.distribution, condition, "FlowModel")
        batch = Batch(events, condition, None if weights is None else self._as_weights(weights))
        checks = self.checks(batch, have_noise)
        known = [(tf.get_static_value(is_valid), message) for is_valid, message in checks]
        for is_valid, message in known:
            _require(is_valid is None or bool(is_valid), message)
        # A graph evaluates the checks with the first step. In this step, conditions and weights of
        # another number than the events must have shapes that the operations take.
        number = events.shape[0]
        if number is None:
            number = tf.shape(events)[0]
        condition = None if condition is None else _first(condition, number)
        if weights is not None:
            weights = _first(tf.reshape(batch.weights, [-1]), number)
        unknown = zip(known, checks, strict=True)
        return Batch(events, condition, weights), [c for (value, _), c in unknown if value is None]

    def checks(self, batch: Batch, have_noise: bool = False) -> list[Check]:
        """Returns the checks of the values of a batch of tensors, which can be within a graph."""
        events, checks = batch.events, []
        if self.dequantize:
            rule = pixels.continuous_conditions if have_noise else pixels.gray_level_conditions
            for is_valid, *message in rule(events, self.num_values):
                checks.append(Check(is_valid, f"FlowModel: {'. '.join(message)}"))
        number = tf.shape(events)[0] if events.shape[0] is None else events.shape[0]
        return checks + self._checks_for_each(number, batch.condition, batch.weights)

    def _checks_for_each(self, number: Any, condition: Any, weights: Any) -> list[Check]:
        """Returns the checks of the conditions and weights of a number of events."""
        checks, spec = [], self.condition_spec
        each = f"each of {number if isinstance(number, int) else 'the'} events"
        if condition is not None and spec is not None:
            found = condition.shape[0] or "another number"
            message = f"FlowModel: expected one condition for {each}, got {found}."
            checks.append(Check(_are_one_each(condition, number), message))
            if spec.num_classes is not None:
                expected = f"FlowModel: expected a conditional_input of {spec.description}"
                is_valid = tf.reduce_all(spec.in_range(condition))
                checks.append(Check(is_valid, f"{expected}, got other labels."))
        if weights is not None:
            message = f"{_WEIGHTS}, one for {each}, got shape {weights.shape}."
            checks.append(Check(_are_one_each(weights, number, are_numbers=True), message))
            is_valid = tf.reduce_all(weights >= 0) & tf.math.is_finite(tf.reduce_sum(weights))
            values = "" if tf.get_static_value(weights) is None else f" {weights.numpy()}"
            checks.append(Check(is_valid, f"{_WEIGHTS}, got others{values}."))
        return checks

    def _as_weights(self, weights: Any) -> tf.Tensor:
        """Returns sample weights as a tensor of the distribution's dtype."""
        if not tf.is_tensor(weights):
            weights = np.asarray(weights)
            validation.require(weights.dtype.kind in "biuf", _WEIGHTS, weights.dtype)
        return tf.cast(weights, self.distribution.dtype)

    def check(self, data: Any, caller: str, stacklevel: int = 3, trains: bool = False) -> None:
        """Checks the values of arrays, or the shapes and dtypes of a `tf.data.Dataset`.

        Raises `ValueError` if there are no events; events are not finite real numbers, [B, H, W, C]
        with the gray levels of the model or [B, D]; conditions are not as declared; or weights are
        negative, all zero, or not finite. Does not check other kinds of data.

        Columns of vectors that float32 cannot resolve are an error if the data `trains` a model.
        Otherwise they cause a warning, since the same flow may have scored wider data.
        """
        parts = parse(data)
        is_dataset = isinstance(parts.events, tf.data.Dataset)
        is_array = hasattr(parts.events, "__array__")
        if parts.events is None or (is_dataset and parts.events.cardinality() == 0):
            what = "an empty dataset" if is_dataset else "None"
            raise ValueError(f"FlowModel: expected {self._name}, got {what}.")
        if is_array:
            self._check_event_shape(parts.events)
        if parts.condition is not None and not self.takes_condition:
            self._refuse_labels(parts.condition)
        if is_dataset:
            # Placeholders in a graph have shapes and dtypes, but no values.
            with tf.Graph().as_default():
                batch = parse(tf.nest.map_structure(_placeholder, parts.events.element_spec))
                self.batch(batch if self.takes_condition else batch._replace(condition=None))
        elif is_array:
            self.check_values(parts)
            if self.event_ndims == 1:
                level = None if trains else stacklevel + 1
                rows = np.asarray(parts.events)
                validation.columns_apart(rows, self.distribution.dtype, caller, level)

    def check_values(self, batch: Batch, is_whole: bool = True) -> None:
        """Checks arrays or eager tensors as `check` does.

        If not `is_whole`, the batch is a part of the data, whose weights may all be 0.
        """
        name, (events, condition, weights) = self._name, batch
        self._check_event_shape(events)
        if not len(events):
            raise ValueError(
                f"FlowModel: expected {name} [batch, ...], at least one, got shape "
                f"{tuple(events.shape)}."
            )
        if np.ma.is_masked(events):
            raise ValueError(
                f"FlowModel: expected {name} without masked elements. Leave out events with masked "
                "elements; tfr.latents.complete draws missing elements."
            )
        if events.dtype == tf.bfloat16:
            events = tf.cast(events, tf.float32)
        events = np.asarray(events)
        if events.dtype.kind not in "biuf":
            advice = " For a DataFrame, pass frame.apply(pd.to_numeric).astype(float)."
            raise ValueError(
                f"FlowModel: expected {name} of real numbers, got dtype {events.dtype}."
                f"{advice if events.dtype.kind in 'OUS' else ''}"
            )
        are_finite = np.isfinite(events).all(axis=tuple(range(1, events.ndim)))
        if not are_finite.all():
            raise ValueError(
                f"FlowModel: expected finite {name}, got {np.count_nonzero(~are_finite)} of "
                f"{len(events)} with a NaN or an infinity, first in row {np.argmin(are_finite)}."
            )
        if self.dequantize:
            pixels.check_gray_levels(events, "FlowModel", self.num_values)
        condition = routing.checked_conditions(self.distribution, condition, "FlowModel")
        if weights is not None:
            with tf.device("CPU"):
                weights = self._as_weights(weights)
            expected, values = f"{_WEIGHTS}, not all 0", weights.numpy()
            validation.require(values.any() or not is_whole, expected, values)
        with tf.device("CPU"):  # arrays may be larger than the memory of a GPU
            for is_valid, message in self._checks_for_each(len(events), condition, weights):
                _require(bool(is_valid), message)

    def warn_of_values(self, batch: Batch, stacklevel: int) -> None:
        """Warns of unusual values in the data of `FlowModel.fit`, or in its first batch."""
        events, spec = np.asarray(batch.events), self.condition_spec
        of_vectors = batch.condition is not None and spec is not None and spec.event_ndims == 1
        if of_vectors and routing.bijector_takes_condition(self.distribution):
            conditions = np.asarray(batch.condition, np.float64)
            _warn_of_conditions(conditions.reshape(len(conditions), -1), stacklevel + 1)
        if self.num_values is not None and events.max() < self.num_values / 8:
            warnings.warn(
                f"FlowModel.fit: the largest pixel value is {events.max()}, but the model has "
                f"{self.num_values} gray levels. Use `RealNVPImage(..., num_values=n)` for images "
                "of n levels; multiply images in [0, 1] by 255.",
                stacklevel=stacklevel + 1,
            )
        share = np.mean(events % 1 != 0) if self.dequantize and events.dtype.kind == "f" else 0
        if share:
            warnings.warn(
                f"FlowModel.fit: {share:.0%} of the pixel values are not whole, and are rounded "
                "down to gray levels. `tf.round` rounds to the nearest level, for example after "
                "augmentation; dequantize=False neither rounds nor adds noise.",
                stacklevel=stacklevel + 1,
            )

    def _refuse_labels(self, condition: Any) -> None:
        raise ValueError(
            f"FlowModel: expected events without labels or conditions, {_NO_CONDITION} "
            f"Got a condition of shape {np.shape(condition)}."
        )

    def _check_event_shape(self, events: Any) -> None:
        """Raises `ValueError` unless `events` is a batch of events."""
        name, axes, event_shape = self._name, self._axes, self.distribution.event_shape
        if event_shape.rank is None:
            event_shape = tf.TensorShape([None, None, None])
        else:
            axes = ", ".join(map(str, event_shape))
        shape = tf.TensorShape(events.shape)
        if shape.rank != 1 + event_shape.rank or not shape[1:].is_compatible_with(event_shape):
            advice = ""
            if shape.is_compatible_with(event_shape):
                advice = f" `np.stack({name})` batches a list, and `dataset.batch(32)` a dataset."
            elif shape.rank == 3:
                advice = " For images of one channel, add the channel axis: `images[..., None]`."
            raise ValueError(
                f"FlowModel: expected {name} [batch, {axes}], got shape {shape}.{advice}"
            )

    def _check_channels_last(self) -> None:
        event_shape = self.distribution.event_shape
        if event_shape.rank != 3 or not event_shape.is_fully_defined():
            return
        channels, height, width = event_shape
        if channels in (1, 3) and height == width > 4:
            raise ValueError(
                "FlowModel: expected images [height, width, channels], got a distribution over "
                f"{event_shape}, which has the channels first; `np.moveaxis(images, 1, -1)` moves "
                "them to the end."
            )


def _are_one_each(values: Any, number: Any, are_numbers: bool = False) -> Any:
    """Returns whether values [B, ...] are as many as the events; numbers are [B] or [B, 1]."""
    shape: Any = tf.TensorShape(values.shape)
    is_static = shape.is_fully_defined() and isinstance(number, int)
    shape = shape.as_list() if is_static else tf.shape(values)
    with tf.init_scope() if is_static else contextlib.nullcontext():
        if not are_numbers:
            return tf.equal(shape[0], number)
        first_two = tf.concat([shape, [1]], axis=0)[:2]
        is_column = tf.reduce_all(tf.equal(first_two, [number, 1]))
        return is_column & tf.equal(tf.reduce_prod(shape), number)


def _require(is_valid: bool, message: str) -> None:
    if not is_valid:
        raise ValueError(message)


def _placeholder(spec: Any) -> Any:
    if isinstance(spec, tf.SparseTensorSpec):
        return tf.compat.v1.sparse_placeholder(spec.dtype, spec.shape)
    return tf.compat.v1.placeholder(spec.dtype, spec.shape) if hasattr(spec, "dtype") else None


def _first(values: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
    """Returns the first `number` values [B, ...], after which zeros follow."""
    if isinstance(number, int) and values.shape[0] == number:
        return values
    zeros = tf.zeros(tf.concat([[number], tf.shape(values)[1:]], axis=0), values.dtype)
    first = tf.concat([values, zeros], axis=0)[:number]
    return tf.ensure_shape(first, [tf.get_static_value(number), *values.shape[1:]])


def _warn_of_conditions(conditions: np.ndarray, stacklevel: int) -> None:
    """Warns if networks would hardly learn from the values of a column of conditions, [N, K]."""
    conditions = conditions[np.isfinite(conditions).all(axis=1)]
    if not len(conditions):
        return
    largest = np.abs(conditions).max(axis=0)
    means, stddevs = conditions.mean(axis=0), conditions.std(axis=0)
    is_far = (np.abs(means) > 20 * np.maximum(stddevs, 1)) | (stddevs > 1000)
    is_far |= (largest > 0) & (largest < 0.01)
    if is_far.any():
        column = np.argmax(is_far)
        warnings.warn(
            f"FlowModel.fit: column {column} of the conditions has a mean of {means[column]:g} and "
            f"a standard deviation of {stddevs[column]:g}, from which networks hardly learn. "
            "Standardize each column, also in later calls, by its mean and standard deviation in "
            "the training data.",
            stacklevel=stacklevel + 1,
        )
