"""Reads events, conditions and weights from data for a `FlowModel`, and checks them."""

import inspect
import math
import warnings
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_realnvp import pixels
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.distributions import routing
from tfp_realnvp.internal import private_api, validation
from tfp_realnvp.internal.tf_data import PARALLEL_CALLS, PREFETCHED_BATCHES, without_autotune
from tfp_realnvp.training.diagnosis import FiniteRecord

# Makes the random numbers of `drop_conditions` differ from the noise of the same step.
_DROPOUT_STREAM = 0xD809
_WEIGHTS = "FlowModel: expected finite sample weights of at least 0"
# Names of events and of their axes in error messages, by the rank of an event.
_NAMES = {3: ("images", "height, width, channels"), 1: ("vectors", "size")}


class Batch(NamedTuple):
    """Events [B, ...], their conditions or `None`, and their weights [B] or `None`."""

    events: tf.Tensor
    condition: tf.Tensor | None = None
    weights: tf.Tensor | None = None


def events_in(data: Any) -> Any:
    """Returns a batch's events: `data` itself, element 0, or the key `'image'`."""
    if isinstance(data, (tuple, list)):
        return events_in(data[0])
    if isinstance(data, dict):
        if "image" not in data:
            raise ValueError(f"expected a key 'image', got {sorted(data)}.")
        data = data["image"]
    return data


def condition_in(data: Any) -> Any:
    """Returns a batch's condition or `None`: element 1, `'conditional_input'` or `'label'`."""
    if isinstance(data, (tuple, list)):
        has_condition = len(data) > 1 and data[1] is not None
        return data[1] if has_condition else condition_in(data[0])
    if isinstance(data, dict):
        return data.get("conditional_input", data.get("label"))
    return None


def weights_in(data: Any) -> Any:
    """Returns a batch's weights or `None`: element 2, or the key `'sample_weight'`."""
    if isinstance(data, (tuple, list)):
        has_weights = isinstance(data, tuple) and len(data) > 2 and data[2] is not None
        return data[2] if has_weights else weights_in(data[0])
    if isinstance(data, dict):
        return data.get("sample_weight")
    return None


def arguments_for_keras(model: Any, method: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Checks the data in the arguments of `fit` or another method, and returns arguments for Keras.

    Wraps arrays in a Keras data adapter, and turns off the autotuning of `tf.data`, see
    `without_autotune`. Passes on other data and arguments unchanged. `fit` raises `ValueError` if
    float32 cannot distinguish the values of a column of vectors.
    """
    signature = inspect.signature(getattr(keras.Model, method))
    arguments = dict(signature.bind(None, *args, **kwargs).arguments)
    arguments.update(arguments.pop("kwargs", {}))
    del arguments["self"]
    batch_size = arguments.get("batch_size")
    if batch_size is not None:
        form = "conditions as `predict((events, conditions))`, and " * (method == "predict")
        expected = f"FlowModel.{method}: expected {form}an integer batch_size of at least 1"
        validation.integer(batch_size, 1, expected)
    names = ("x", "y", "sample_weight")
    data: Any = tuple(arguments.pop(name, None) for name in names)
    x = data[0]
    if isinstance(x, tuple) and len(x) == 3:
        # Keras would ignore the weights in a tuple `x`. Predictions do not depend on weights.
        data = (x[:2], None, None) if method == "predict" else x
    is_dataset = isinstance(x, tf.data.Dataset)
    if is_dataset and method != "fit" and arguments.get("steps") is None:
        if x.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(f"FlowModel.{method}: expected a finite dataset, or `steps`.")
    held_out = arguments.pop("validation_data", None)
    fraction = arguments.pop("validation_split", 0.0)
    if held_out is not None:
        held_out = keras.utils.unpack_x_y_sample_weight(held_out)
    elif fraction:
        data, held_out = _split(tuple(map(as_arrays, data)), fraction)
    class_weight = arguments.get("class_weight")
    data = checked_batch(model, data, class_weight)
    if method == "fit" and hasattr(events_in(data), "__array__"):
        _warn_of_values(data, model)
    dtype = model.distribution.dtype
    if held_out is not None:
        arguments["validation_data"] = _batches(
            *checked_batch(model, held_out),
            batch_size=arguments.get("validation_batch_size") or batch_size,
            steps=arguments.get("validation_steps"),
            dtype=dtype,
        )
    if is_dataset and method == "fit":
        # Without `shuffle=False`, Keras warns that it does not shuffle datasets.
        arguments.setdefault("shuffle", False)
    batches = _batches(
        *data,
        batch_size=batch_size,
        steps=arguments.get("steps_per_epoch" if method == "fit" else "steps"),
        dtype=dtype,
        shuffle=method == "fit" and arguments.get("shuffle", True),
        class_weight=class_weight,
    )
    data = zip(names, keras.utils.unpack_x_y_sample_weight(batches), strict=True)
    return {**arguments, **{name: part for name, part in data if part is not None}}


def checked_batch(model: Any, data: Any, class_weight: Any = None) -> tuple[Any, ...]:
    """Checks data, and converts lists of numbers and pandas frames to arrays.

    Raises the errors of `check_data`, or `ValueError` for a `class_weight` without labels.
    """
    data = tuple(map(as_arrays, data))
    has_labels = getattr(model.condition_spec, "num_classes", None) is not None
    expected = "FlowModel: expected class_weight only for a distribution that takes labels"
    validation.require(class_weight is None or has_labels, expected, class_weight)
    check_data(data, model)
    return data


class ArrayBatches(private_api.ArrayDataAdapter):
    """A data adapter of arrays in which Keras shuffles and batches row indices, not rows.

    Casts floats to the distribution's dtype, and turns off the autotuning of `tf.data`.
    """

    _inputs: Any

    def __init__(self, *data: Any, dtype: tf.DType, **options: Any) -> None:
        super().__init__(*data, **options)
        self.arrays, self._inputs = self._inputs, np.arange(self._num_samples)
        self._float_dtype = dtype

    def get_tf_dataset(self) -> tf.data.Dataset:
        """Returns the batches as a dataset."""

        def tensor(values: Any) -> tf.Tensor:
            values = tf.convert_to_tensor(values if tf.is_tensor(values) else np.asarray(values))
            return tf.cast(values, self._float_dtype) if values.dtype.is_floating else values

        def batch(rows: tf.Tensor, tensors: Any) -> Any:
            return tf.nest.map_structure(lambda values: tf.gather(values, rows), tensors)

        with tf.device("CPU"):
            tensors = keras.tree.lists_to_tuples(keras.tree.map_structure(tensor, self.arrays))
            # Zip the row indices with the repeated arrays: if `batch` captured the arrays, its
            # graph would contain copies.
            tensors = tf.data.Dataset.from_tensors(tensors).repeat()
            dataset = tf.data.Dataset.zip((super().get_tf_dataset(), tensors))
            dataset = dataset.map(batch, num_parallel_calls=PARALLEL_CALLS)
            return without_autotune(dataset.prefetch(PREFETCHED_BATCHES))


def _batches(x: Any, y: Any, sample_weight: Any, *, dtype: tf.DType, **options: Any) -> Any:
    """Wraps arrays in a data adapter, and turns off the autotuning of `tf.data`."""
    if private_api.can_convert_arrays((x, y, sample_weight)):
        if y is None and sample_weight is not None:
            # Keras drops weights without labels, so pass both in a dictionary.
            names = ("image", "conditional_input", "sample_weight")
            parts = events_in(x), condition_in(x), sample_weight
            x = {n: part for n, part in zip(names, parts, strict=True) if part is not None}
            sample_weight = None
        return ArrayBatches(x, y, sample_weight, dtype=dtype, **options)
    if isinstance(x, tf.data.Dataset):
        x = without_autotune(x)
    return x if y is None and sample_weight is None else (x, y, sample_weight)


def _split(data: Any, fraction: float) -> tuple[Any, Any]:
    """Splits data as Keras does: the last rows are for validation."""
    expected = "FlowModel: expected a validation_split in (0, 1)"
    validation.real(fraction, lambda x: 0 < x < 1, expected)
    expected = "FlowModel.fit: expected arrays or tensors for a validation_split"
    validation.require(private_api.can_convert_arrays(data), expected, data)
    first = math.floor(len(keras.tree.flatten(data)[0]) * (1 - fraction))

    def part(rows: slice) -> Any:
        return keras.tree.map_structure(lambda x: None if x is None else x[rows], data)

    return part(slice(first)), part(slice(first, None))


def as_arrays(data: Any) -> Any:
    """Converts lists of numbers and pandas frames to arrays, and a pandas series to a column.

    Keras takes lists of numbers for lists of arrays, and Keras 3.10 fails on `None` in a tuple.
    """
    if hasattr(data, "to_numpy"):
        values = data.to_numpy()
        kinds = {getattr(dtype, "kind", "O") for dtype in np.ravel(getattr(data, "dtypes", "O"))}
        if values.dtype == object and kinds <= {*"biuf"}:
            # Columns of numbers and bools, or of pandas' nullable dtypes.
            values = data.to_numpy(np.float64, na_value=np.nan)
        return values if values.ndim > 1 else values[:, np.newaxis]
    if not isinstance(data, (tuple, list)):
        return data
    if isinstance(data, list) and all(np.ndim(leaf) == 0 for leaf in tf.nest.flatten(data)):
        return np.asarray(data)
    kind = tuple if isinstance(data, tuple) else list  # a named tuple becomes a tuple
    return kind(as_arrays(part) for part in data if part is not None)


def check_no_labels(distribution: tfd.Distribution, data: Any) -> None:
    """Raises `ValueError` if conditions are given to a distribution that takes none.

    The labels of a dataset are not checked.
    """
    if isinstance(data, tuple) and all(part is None for part in data[1:]):
        data = data[0]
    # A list contains images, unlike a tuple, which can contain images and labels.
    condition = None if isinstance(data, list) else condition_in(data)
    if condition is not None and not routing.takes_condition(distribution):
        raise ValueError(
            f"FlowModel: expected events without labels or conditions, {_NO_CONDITION} "
            f"Got a condition of shape {np.shape(condition)}."
        )


_NO_CONDITION = (
    "since the distribution takes none. RealNVPImage and RealNVPVector take labels with "
    "`num_classes=K`, and vectors or images with `conditional_event_shape=[...]`; a `ClassMixture` "
    "as base takes labels."
)


def warn_of_labels(distribution: tfd.Distribution) -> None:
    """Warns that a distribution without a condition ignores the labels of a dataset."""
    warnings.warn(
        f"FlowModel: the labels of the dataset are not used by {distribution.name}, "
        f"{_NO_CONDITION} `dataset.map(lambda x, y: x)` leaves labels out.",
        stacklevel=2,
    )


def check_data(data: Any, model: Any) -> None:
    """Checks the values of arrays, or the shapes and dtypes of a `tf.data.Dataset`.

    Raises `ValueError` if there are no events; events are not finite real numbers, [B, H, W, C]
    with the gray levels of the model or [B, D]; conditions are not as declared; or weights are
    negative, all zero, or not finite.
    """
    distribution = model.distribution
    check_no_labels(distribution, data)
    events = events_in(data)
    is_empty = isinstance(events, tf.data.Dataset) and events.cardinality() == 0
    if events is None or is_empty:
        what = "an empty dataset" if is_empty else "None"
        raise ValueError(f"FlowModel: expected {_name(distribution)}, got {what}.")
    if isinstance(events, tf.data.Dataset):
        # Placeholders in a graph have shapes and dtypes, but no values.
        with tf.Graph().as_default():
            batch = tf.nest.map_structure(_placeholder, events.element_spec)
            events_and_weights(batch, distribution)
            condition = condition_in(batch)
            routing.checked_conditions(distribution, condition, "FlowModel")
    elif hasattr(events, "__array__"):
        _check_values(data, model)


def _placeholder(spec: Any) -> Any:
    return tf.compat.v1.placeholder(spec.dtype, spec.shape) if hasattr(spec, "dtype") else None


def _check_values(data: Any, model: Any, is_whole: bool = True) -> None:
    """Checks arrays or eager tensors as `check_data` does. A batch may have only weights of 0."""
    distribution = model.distribution
    name, events = _name(distribution), events_in(data)
    _check_event_shape(events, distribution.event_shape)
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
    if model.dequantize:
        pixels.check_gray_levels(events, "FlowModel", routing.find_num_values(distribution))
    weights = weights_in(data)
    if weights is not None:
        weights = np.asarray(weights)
        is_valid = (
            weights.dtype.kind in "biuf"
            and weights.shape in ((len(events),), (len(events), 1))
            and (np.isfinite(weights) & (weights >= 0)).all()
            and (weights.any() or not is_whole)
        )
        expected = f"{_WEIGHTS}, not all 0, one for each of {len(events)} events"
        validation.require(bool(is_valid), expected, weights)
    condition = routing.checked_conditions(distribution, condition_in(data), "FlowModel")
    if condition is not None and model.condition_spec is not None:
        expected = f"FlowModel: expected one condition for each of {len(events)} events"
        validation.require(len(condition) == len(events), expected, len(condition))


def check_training_batch(model: Any, data: Any) -> None:
    """Checks the first batch of `fit`, arrays or eager tensors, as `check_data` does.

    A batch may have only zero weights, or labels that the distribution ignores.
    """
    _check_values(data, model, is_whole=False)
    _warn_of_values(data, model)


def _warn_of_values(data: Any, model: Any) -> None:
    """Raises an error for columns that float32 cannot resolve; warns of unusual gray levels."""
    events, distribution = np.asarray(events_in(data)), model.distribution
    if events.ndim == 2:
        validation.columns_apart(events, distribution.dtype, "FlowModel.fit")
    num_values = routing.find_num_values(distribution)
    if num_values is not None and events.max() < num_values / 8:
        warnings.warn(
            f"FlowModel.fit: the largest pixel value is {events.max()}, but the model has "
            f"{num_values} gray levels. Use `RealNVPImage(..., num_values=n)` for images of n "
            "levels; multiply images in [0, 1] by 255.",
            stacklevel=4,
        )
    share = np.mean(events % 1 != 0) if model.dequantize and events.dtype.kind == "f" else 0
    if share:
        warnings.warn(
            f"FlowModel.fit: {share:.0%} of the pixel values are not whole, and are rounded down "
            "to gray levels. `tf.round` rounds to the nearest level, for example after "
            "augmentation; dequantize=False neither rounds nor adds noise.",
            stacklevel=4,
        )


def events_and_weights(
    data: Any, distribution: tfd.Distribution
) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Returns a batch's events, and its weights [B] in the distribution's dtype, if any."""
    events = tf.convert_to_tensor(events_in(data))
    _check_event_shape(events, distribution.event_shape)
    if events.dtype.is_complex or events.dtype == tf.string:
        name, dtype = _name(distribution), events.dtype.name
        raise ValueError(f"FlowModel: expected {name} of real numbers, got dtype {dtype}.")
    weights = weights_in(data)
    if weights is not None:
        weights, number = tf.cast(weights, distribution.dtype), events.shape[0]
        is_valid = any(weights.shape.is_compatible_with(s) for s in ([number], [number, 1]))
        expected = f"{_WEIGHTS}, one for each of {number} events"
        validation.require(is_valid, expected, weights.shape)
        weights = tf.ensure_shape(tf.reshape(weights, [-1]), [number])
    return events, weights


def record_of_data(model: Any, batch: Batch) -> FiniteRecord:
    """Checks a batch within the graph of a step, and returns the results in a `FiniteRecord`."""
    record, spec, (events, condition, weights) = FiniteRecord(), model.condition_spec, batch
    if condition is not None and spec is not None:
        is_each = tf.equal(tf.shape(condition)[0], tf.shape(events)[0])
        expected = "FlowModel: expected one condition for each event"
        record.require(is_each, f"{expected}, got another number of conditions.")
        if spec.num_classes is not None:
            expected = f"FlowModel: expected a conditional_input of {spec.description}"
            is_valid = tf.reduce_all(spec.in_range(condition))
            record.require(is_valid, f"{expected}, got other labels.")
    if model.dequantize:
        num_values = routing.find_num_values(model.distribution)
        for is_valid, *message in pixels.gray_level_conditions(events, num_values):
            record.require(is_valid, f"FlowModel: {'. '.join(message)}")
    if weights is not None:
        is_valid = tf.reduce_all(weights >= 0) & tf.math.is_finite(tf.reduce_sum(weights))
        record.require(is_valid, f"{_WEIGHTS}.")
    return record


def _name(distribution: tfd.Distribution) -> str:
    return _NAMES[distribution.event_shape.rank or 3][0]


def _check_event_shape(events: Any, event_shape: tf.TensorShape) -> None:
    """Raises `ValueError` unless `events` is a batch of events of `event_shape`."""
    name, axes = _NAMES[event_shape.rank or 3]
    if event_shape.rank is None:
        event_shape = tf.TensorShape([None, None, None])
    else:
        axes = ", ".join(map(str, event_shape))
    shape = tf.TensorShape(events.shape)
    if shape.rank != 1 + event_shape.rank or not shape[1:].is_compatible_with(event_shape):
        advice = ""
        if shape.is_compatible_with(event_shape):
            advice = (
                f" `np.stack({name})` makes a batch of a list, `dataset.batch(32)` of a dataset."
            )
        elif shape.rank == 3:
            advice = " For images of one channel, add the channel axis: `images[..., None]`."
        raise ValueError(f"FlowModel: expected {name} [batch, {axes}], got shape {shape}.{advice}")


def check_distribution(distribution: Any, dequantize: bool | None) -> int:
    """Returns the rank of an event, 3 for images and 1 for vectors, or raises `ValueError`."""
    expected = "FlowModel: expected a tfd.Distribution"
    routing.check_distribution(distribution, expected, distribution)
    event_shape = distribution.event_shape
    event_ndims = 3 if event_shape.rank is None else event_shape.rank
    fits = event_ndims in _NAMES and distribution.batch_shape.rank == 0
    expected += " over images [height, width, channels] or vectors [size], without batch dimensions"
    validation.require(fits, expected, distribution)
    if event_shape.rank == 3 and event_shape.is_fully_defined() and dequantize in (None, True):
        channels, height, width = event_shape
        if channels in (1, 3) and height == width > 4:
            raise ValueError(
                "FlowModel: expected images [height, width, channels], got a distribution over "
                f"{event_shape}, which has the channels first; `np.moveaxis(images, 1, -1)` moves "
                "them to the end."
            )
    return event_ndims


def drop_conditions(
    spec: ConditionSpec | None, condition: tf.Tensor | None, seed: tf.Tensor, first: tf.Tensor | int
) -> tf.Tensor | None:
    """Replaces each of the conditions [B, ...] by a missing one with probability `spec.dropout`.

    `first` is the position of this replica's first event in the batch of all replicas.
    """
    if condition is None or spec is None or not spec.dropout:
        return condition
    seed = tf.stack([seed[0] ^ _DROPOUT_STREAM, seed[1]])
    noise = pixels.batch_noise(tf.zeros(tf.shape(condition)[:1]), seed, first=first)
    return spec.without(condition, noise < spec.dropout)
