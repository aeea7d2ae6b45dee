"""The data that `FlowModel` takes: checked early, and made into batches by Keras."""

from __future__ import annotations

import inspect
import math
import numbers
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import distributions, pixels
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal import batch_parts, private_api, validation
from tfp_realnvp.internal.tf_data import PARALLEL_CALLS, PREFETCHED_BATCHES, without_autotune

__all__ = [
    "EXPECTED_WEIGHTS",
    "arguments_for_keras",
    "as_arrays",
    "batch_for_keras",
    "check_channels_last",
    "check_data",
    "check_distribution",
    "check_event_shape",
    "check_no_labels",
    "drop_conditions",
    "events_of_batch",
    "warn_of_labels",
    "weights_of_batch",
]

tfd = tfp.distributions

# Conditions are left out by other random numbers than those of the noise in the same step.
_DROPOUT_STREAM = 0xD809
EXPECTED_WEIGHTS = "expected finite sample weights of at least 0"
# Of events and of their axes, by the rank of an event.
_NAMES = {3: ("images", "height, width, channels"), 1: ("vectors", "size")}


def arguments_for_keras(model: Any, method: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns the arguments of a call of a `keras.Model`, in which `tf.data` does not autotune.

    Keras splits arrays and makes batches of them; see `without_autotune` for the difference. Other
    data, and all other arguments, are left to Keras as they are.

    Args:
      model: a `FlowModel`.
      method: `'fit'`, `'evaluate'` or `'predict'`.
      *args: of the method.
      **kwargs: of the method.

    Raises:
      ValueError: if the data or weights are not as `check_data` expects them, or Keras; or `fit` of
        a float32 distribution gets vectors with columns whose values float32 cannot tell apart.
    """
    signature = inspect.signature(getattr(keras.Model, method))
    arguments = dict(signature.bind(None, *args, **kwargs).arguments)
    arguments.update(arguments.pop("kwargs", {}))
    del arguments["self"]
    batch_size = arguments.get("batch_size")
    if not (batch_size is None or isinstance(batch_size, numbers.Integral)):
        raise ValueError(
            f"FlowModel.{method}: expected an integer batch_size, got {type(batch_size).__name__}; "
            "`predict` takes conditions with the events, `predict((events, conditions))`."
        )
    if batch_size is not None:
        expected = f"FlowModel.{method}: expected a batch_size of at least 1"
        validation.integer(batch_size, 1, expected)
    x = arguments.get("x")
    if isinstance(x, tuple) and len(x) == 3:
        # Keras leaves out weights within `x`. A prediction does not depend on them.
        parts = zip(("x", "y", "sample_weight"), x, strict=True)
        arguments.update({"x": x[:2]} if method == "predict" else dict(parts))
    if isinstance(x, tf.data.Dataset) and method != "fit" and arguments.get("steps") is None:
        if x.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(f"FlowModel.{method}: expected a finite dataset, or `steps`.")
    names = ("x", "y", "sample_weight")
    data = tuple(as_arrays(arguments.pop(name, None)) for name in names)
    class_weight = arguments.pop("class_weight", None)
    check_data(data, model.distribution, gray_levels=model.dequantize, class_weight=class_weight)
    if method == "fit":
        _warn_of_few_levels(data, model.distribution)
        rows = batch_parts.events_in(data)
        if model.event_ndims == 1 and hasattr(rows, "__array__"):
            validation.columns_apart(np.asarray(rows), model.distribution.dtype, "FlowModel.fit")
    held_out = arguments.pop("validation_data", None)
    fraction = arguments.pop("validation_split", 0.0)
    if fraction and held_out is None:
        expected = "FlowModel: expected a validation_split in (0, 1)"
        validation.real(fraction, lambda x: 0 < x < 1, expected)
        data, held_out = _split(data, fraction)
    if held_out is not None:
        held_out = tuple(map(as_arrays, keras.utils.unpack_x_y_sample_weight(held_out)))
        _check_weights(held_out[2], batch_parts.events_in(held_out[0]))
        check_no_labels(model.distribution, held_out)
        size = arguments.get("validation_batch_size") or batch_size
        steps = arguments.get("validation_steps")
        options = {"batch_size": size, "steps": steps, "dtype": model.distribution.dtype}
        arguments["validation_data"] = _batches(*held_out, **options)
    if isinstance(data[0], tf.data.Dataset) and method == "fit":
        # Keras warns that it does not shuffle datasets, even where `shuffle` is not given.
        arguments.setdefault("shuffle", False)
    options = {
        "dtype": model.distribution.dtype,
        "batch_size": batch_size,
        "steps": arguments.get("steps_per_epoch" if method == "fit" else "steps"),
        "shuffle": method == "fit" and arguments.get("shuffle", True),
    }
    batches = _batches(*data, class_weight=class_weight, **options)
    if class_weight is not None and not isinstance(batches, private_api.ArrayDataAdapter):
        arguments["class_weight"] = class_weight
    data = dict(zip(names, keras.utils.unpack_x_y_sample_weight(batches), strict=True))
    return {**arguments, **{name: part for name, part in data.items() if part is not None}}


def batch_for_keras(
    model: Any, x: Any, y: Any = None, sample_weight: Any = None, class_weight: Any = None
) -> tuple[Any, Any, Any]:
    """Returns events, conditions and weights of one batch, checked.

    Args:
      model: a `FlowModel`.
      x: events, or events and conditions.
      y: conditions, or `None`.
      sample_weight: of the events, or `None`.
      class_weight: weights by label, or `None`.

    Raises:
      ValueError: as `check_data`.
    """
    data = tuple(as_arrays(part) for part in (x, y, sample_weight))
    check_data(data, model.distribution, gray_levels=model.dequantize, class_weight=class_weight)
    return data


class _ArrayBatches(private_api.ArrayDataAdapter):
    """The batches that Keras makes of arrays: by numbers of rows, which it shuffles and batches.

    Keras would cast all floats to `keras.config.floatx()`. `tf.data` does not autotune.
    """

    _inputs: Any

    def __init__(self, *data: Any, dtype: tf.DType, **options: Any) -> None:
        super().__init__(*data, **options)
        self._arrays, self._inputs = self._inputs, np.arange(self._num_samples)
        self._float_dtype = dtype

    def get_tf_dataset(self) -> tf.data.Dataset:
        def tensor(values: Any) -> tf.Tensor:
            values = tf.convert_to_tensor(values if tf.is_tensor(values) else np.asarray(values))
            return tf.cast(values, self._float_dtype) if values.dtype.is_floating else values

        def batch(rows: tf.Tensor, tensors: Any) -> Any:
            return tf.nest.map_structure(lambda values: tf.gather(values, rows), tensors)

        with tf.device("CPU"):
            tensors = keras.tree.lists_to_tuples(keras.tree.map_structure(tensor, self._arrays))
            # `repeat` of one element, since a function would have the arrays in its graph.
            tensors = tf.data.Dataset.from_tensors(tensors).repeat()
            dataset = tf.data.Dataset.zip((super().get_tf_dataset(), tensors))
            dataset = dataset.map(batch, num_parallel_calls=PARALLEL_CALLS)
            return without_autotune(dataset.prefetch(PREFETCHED_BATCHES))


def _batches(
    x: Any,
    y: Any,
    sample_weight: Any,
    *,
    batch_size: Any,
    steps: int | None,
    dtype: tf.DType,
    shuffle: bool | str = False,
    class_weight: Any = None,
) -> Any:
    """Returns a data adapter of arrays, or other data as it is, with autotuning off if possible."""
    if private_api.can_convert_arrays((x, y, sample_weight)):
        options = {"batch_size": batch_size, "steps": steps, "shuffle": shuffle, "dtype": dtype}
        if y is None and sample_weight is not None:
            # Keras leaves out weights without labels.
            x, sample_weight = _with_weights(x, sample_weight), None
        return _ArrayBatches(x, y, sample_weight, class_weight=class_weight, **options)
    if isinstance(x, tf.data.Dataset):
        x = without_autotune(x)
    return x if y is None and sample_weight is None else (x, y, sample_weight)


def _split(data: Any, fraction: float) -> tuple[Any, Any]:
    """Returns data for training and, from the end, for validation, split as Keras does."""
    expected = "FlowModel.fit: expected arrays or tensors for a validation_split"
    validation.require(private_api.can_convert_arrays(data), expected, data)
    number = len(keras.tree.flatten(data)[0])
    first = math.floor(number * (1 - fraction))
    expected = "FlowModel.fit: expected a validation_split that leaves events for both parts"
    validation.require(0 < first < number, f"{expected} of {number}", fraction)

    def part(*limits: int | None) -> Any:
        rows = slice(*limits)
        return keras.tree.map_structure(lambda x: None if x is None else x[rows], data)

    return part(first), part(first, None)


def _with_weights(data: Any, weights: Any) -> dict[str, Any]:
    """Returns events, with their condition if there is any, and weights as a dictionary."""
    parts = {
        "image": batch_parts.events_in(data),
        "conditional_input": batch_parts.condition_in(data),
        "sample_weight": weights,
    }
    return {name: part for name, part in parts.items() if part is not None}


def as_arrays(data: Any) -> Any:
    """Returns data with a list of numbers as an array; for Keras it is a list of arrays.

    A frame becomes an array, and a series a column, as in Keras. `None` in a tuple is left out, for
    Keras 3.10 fails for `(images, None)`.
    """
    if hasattr(data, "to_numpy"):
        values = data.to_numpy()
        return values if values.ndim > 1 else values[:, np.newaxis]
    if not isinstance(data, (tuple, list)):
        return data
    if isinstance(data, list) and all(np.ndim(leaf) == 0 for leaf in tf.nest.flatten(data)):
        return np.asarray(data)
    kind = tuple if isinstance(data, tuple) else list  # a named tuple becomes a tuple
    return kind(as_arrays(part) for part in data if part is not None)


def _check_weights(weights: Any, events: Any) -> None:
    """Raises `ValueError` unless weights are `None`, or finite, at least 0 and not all zero."""
    if weights is None:
        return
    values = np.asarray(weights)
    if hasattr(events, "shape") and values.shape not in ((len(events),), (len(events), 1)):
        raise ValueError(
            f"FlowModel: expected one sample weight for each of {len(events)} events, got shape "
            f"{values.shape}."
        )
    if not (np.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise ValueError(f"FlowModel: {EXPECTED_WEIGHTS}, got dtype {values.dtype}.")
    if not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(
            f"FlowModel: {EXPECTED_WEIGHTS}, got values from {values.min()} to {values.max()}."
        )
    if not values.any():
        raise ValueError("FlowModel: expected a positive sample weight, got zeros only.")


def check_no_labels(distribution: tfd.Distribution, data: Any) -> None:
    """Raises `ValueError` if conditions are given to a distribution that takes none.

    Args:
      distribution: of the events.
      data: a tuple of events and conditions. Labels in a dictionary or a dataset are no error, for
        most datasets have them.
    """
    if distributions.takes_condition(distribution):
        return
    while isinstance(data, tuple) and data:
        if len(data) > 1 and data[1] is not None:
            raise ValueError(
                f"FlowModel: expected events without labels or conditions, {_NO_CONDITION} "
                f"Got a condition of shape {np.shape(data[1])}."
            )
        data = data[0]


_NO_CONDITION = (
    "since the distribution takes none. RealNVPImage and RealNVPVector take labels with "
    "`num_classes=K`, and vectors or images with `conditional_event_shape=[...]`; a `ClassMixture` "
    "as base takes labels."
)


def warn_of_labels(distribution: tfd.Distribution) -> None:
    """Warns that the labels of a dataset are not used."""
    warnings.warn(
        f"FlowModel: the labels of the dataset are not used by {distribution.name}, "
        f"{_NO_CONDITION} `dataset.map(lambda x, y: x)` leaves labels out.",
        UserWarning,
        stacklevel=2,
    )


def check_data(
    data: Any, distribution: tfd.Distribution, *, gray_levels: bool, class_weight: Any = None
) -> None:
    """Checks arrays before training: shape, gray levels, weights, and all conditions.

    Of other data only an empty dataset is known before training.

    Args:
      data: events, or a tuple of events, conditions and weights, in any form that `FlowModel.fit`
        takes.
      distribution: of the events.
      gray_levels: whether the values have to be integers, of any dtype.
      class_weight: weights by label, or `None`.

    Raises:
      ValueError: if there are no events; they are not [B, H, W, C] with the gray levels of the
        model, or [B, D]; they are not finite real numbers; the conditions are not as declared; or
        weights are not finite, negative or all zero.
    """
    name, axes = _NAMES[distribution.event_shape.rank or 3]
    spec = distributions.find_condition_spec(distribution)
    if class_weight is not None and (spec is None or spec.num_classes is None):
        raise ValueError(
            "FlowModel: expected class_weight only for a distribution that takes labels "
            "(`num_classes`); `sample_weight` has a weight for each event."
        )
    check_no_labels(distribution, data)
    all_data = data
    if isinstance(data, tuple) and all(part is None for part in data[1:]):
        data = data[0]
    if data is None or (isinstance(data, tf.data.Dataset) and data.cardinality() == 0):
        what = "None" if data is None else "an empty dataset"
        raise ValueError(f"FlowModel: expected {name}, got {what}.")
    events = batch_parts.events_in(data)
    _check_weights(batch_parts.weights_in(all_data), events)
    if not hasattr(events, "__array__"):
        return
    num_axes = len(axes.split(","))
    if len(events.shape) != 1 + num_axes or events.shape[0] == 0:
        advice = ""
        if isinstance(data, list) and len(events.shape) == num_axes:
            advice = f" Of a list of {name} make one array, `np.stack({name})`."
        elif name == "images" and len(events.shape) == 3:
            advice = " For images of one channel add its axis, `images[..., None]`."
        raise ValueError(
            f"FlowModel: expected {name} [number, {axes}], at least one, got shape "
            f"{tuple(events.shape)}.{advice}"
        )
    check_event_shape(events, distribution.event_shape)
    if np.ma.is_masked(events):
        raise ValueError(
            f"FlowModel: expected {name} without masked elements. Leave out events that have some; "
            "tfr.latents.complete draws what is missing in an event."
        )
    events = np.asarray(events)
    if not (
        np.isrealobj(events) and (np.issubdtype(events.dtype, np.number) or events.dtype == bool)
    ):
        advice = " Of a frame of numbers take frame.apply(pd.to_numeric).astype(float)."
        raise ValueError(
            f"FlowModel: expected {name} of real numbers, got dtype {events.dtype}."
            f"{advice if events.dtype.kind in 'OUS' else ''}"
        )
    _check_finite(events, name)
    if gray_levels:
        num_values = distributions.find_num_values(distribution)
        pixels.check_gray_levels(events, "FlowModel", num_values)
    distributions.checked_conditions(distribution, batch_parts.condition_in(data), "FlowModel")


def _check_finite(events: np.ndarray, name: str) -> None:
    if not np.issubdtype(events.dtype, np.floating):
        return
    are_finite = np.isfinite(events).all(axis=tuple(range(1, events.ndim)))
    if not are_finite.all():
        raise ValueError(
            f"FlowModel: expected finite {name}, got {np.count_nonzero(~are_finite)} of "
            f"{len(events)} with a NaN or an infinity, first in row {np.argmin(are_finite)}."
        )


def _warn_of_few_levels(data: Any, distribution: tfd.Distribution) -> None:
    """Warns of images that use a small part of the range of the model's pixel values."""
    num_values = distributions.find_num_values(distribution)
    images = batch_parts.events_in(data)
    if num_values is None or not hasattr(images, "__array__"):
        return
    high = np.asarray(images).max()
    if high < num_values / 8:
        warnings.warn(
            f"FlowModel.fit: the pixel values end at {high}, and the model has {num_values} gray "
            "levels, from 0 on. `RealNVPImage(..., num_values=n)` is for images of n levels; "
            "images in [0, 1] are to be multiplied by 255.",
            UserWarning,
            stacklevel=4,
        )


def events_of_batch(data: Any, event_shape: tf.TensorShape) -> tf.Tensor:
    """Returns the images [B, H, W, C], or vectors [B, D], of a batch, which may also have labels.

    Args:
      data: as `batch_parts.events_in` takes it.
      event_shape: of the distribution.

    Raises:
      ValueError: if the shape does not fit.
    """
    events = tf.convert_to_tensor(batch_parts.events_in(data))
    check_event_shape(events, event_shape)
    if events.dtype.is_complex or events.dtype == tf.string:
        raise ValueError(f"FlowModel: expected real numbers, got dtype {events.dtype.name}.")
    return events


def weights_of_batch(data: Any, dtype: tf.DType) -> tf.Tensor | None:
    """Returns the weights of the events of a batch, [B], or `None`.

    Args:
      data: as `batch_parts.weights_in` takes it, with weights [B] or [B, 1].
      dtype: of the result.

    Raises:
      ValueError: if the shape is another.
    """
    weights = batch_parts.weights_in(data)
    if weights is None:
        return None
    weights = tf.cast(tf.convert_to_tensor(weights), dtype)
    number = tf.convert_to_tensor(batch_parts.events_in(data)).shape[0]
    shape = weights.shape
    # The rank is unknown in a function that was called with [B] and with [B, 1].
    is_column = shape.rank is None or (shape.rank == 2 and shape[1] == 1)
    if not (shape.rank == 1 or is_column) or not shape[:1].is_compatible_with([number]):
        raise ValueError(
            f"FlowModel: expected one sample weight for each of {number} events, got shape {shape}."
        )
    return tf.reshape(weights, [-1])


def check_channels_last(event_shape: tf.TensorShape) -> None:
    """Raises `ValueError` for square images of 1 or 3 channels that have the channels first."""
    if event_shape.rank != 3 or not event_shape.is_fully_defined():
        return
    channels, height, width = event_shape
    if channels in (1, 3) and height == width > 4:
        raise ValueError(
            "FlowModel: expected images [height, width, channels], got a distribution over "
            f"{event_shape}, which has the channels first; `np.moveaxis(images, 1, -1)` moves them "
            "to the end."
        )


def check_event_shape(events: Any, event_shape: tf.TensorShape) -> None:
    """Raises `ValueError` unless `events` is a batch of events of `event_shape`."""
    name, axes = _NAMES[event_shape.rank or 3]
    shape = tf.TensorShape(events.shape)
    if shape.rank != 1 + len(axes.split(",")) or not shape[1:].is_compatible_with(event_shape):
        sizes = axes if event_shape.rank is None else ", ".join(map(str, event_shape))
        is_event = event_shape.rank is not None and shape.is_compatible_with(event_shape)
        advice = " A dataset gets its batches by `dataset.batch(32)`." if is_event else ""
        raise ValueError(f"FlowModel: expected {name} [batch, {sizes}], got shape {shape}.{advice}")


def check_distribution(distribution: Any) -> int:
    """Returns the rank of an event, 3 for images and 1 for vectors.

    Raises:
      TypeError: if it is not a `tfd.Distribution`.
      ValueError: if its events are neither images nor vectors, or it has batch dimensions.
    """
    if not isinstance(distribution, tfd.Distribution):
        raise TypeError(f"FlowModel: expected a tfd.Distribution, got {distribution!r}.")
    rank = distribution.event_shape.rank
    event_ndims = 3 if rank is None else rank
    if event_ndims not in _NAMES or distribution.batch_shape.rank != 0:
        raise ValueError(
            "FlowModel: expected a distribution over images [height, width, channels] or "
            f"vectors [size] without batch dimensions, got event_shape "
            f"{distribution.event_shape} and batch_shape {distribution.batch_shape}."
        )
    return event_ndims


def drop_conditions(
    spec: ConditionSpec | None, condition: tf.Tensor | None, seed: tf.Tensor, first: tf.Tensor | int
) -> tf.Tensor | None:
    """Returns conditions of which a random share, `spec.dropout`, is left out.

    Args:
      spec: of the conditions.
      condition: [B, ...], or `None`.
      seed: two integers.
      first: index of the first of these conditions in a larger batch, as in `pixels.dequantize`.
    """
    if condition is None or spec is None or not spec.dropout:
        return condition
    seed = tf.stack([seed[0] ^ _DROPOUT_STREAM, seed[1]])
    noise = pixels.uniform_noise(tf.shape(condition)[:1], seed, first=first)
    return spec.without(condition, noise < spec.dropout)
