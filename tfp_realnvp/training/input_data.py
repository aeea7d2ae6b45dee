"""The data that `FlowModel` takes: checked early, and made into batches by Keras."""

from __future__ import annotations

import inspect
import numbers
import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import distributions, pixels
from tfp_realnvp.internal import private_api, validation
from tfp_realnvp.internal.tf_data import without_autotune
from tfp_realnvp.networks import ConditionSpec

__all__ = [
    "arguments_for_keras",
    "check_data",
    "check_distribution",
    "check_event_shape",
    "drop_conditions",
    "events_of_batch",
]

tfd = tfp.distributions

# Conditions are left out by other random numbers than those of the noise in the same step.
_DROPOUT_STREAM = 0xD809
# Of events and of their axes, by the rank of an event.
_NAMES = {3: ("images", "height, width, channels"), 1: ("vectors", "size")}


def arguments_for_keras(model: Any, method: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns the arguments of a call of a `keras.Model`, in which `tf.data` does not autotune.

    Keras splits arrays and makes batches of them; see `without_autotune` for the difference. Other
    data, and all other arguments, are left to Keras as they are.

    #### Example

    >>> import numpy as np, tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> from tfp_realnvp.training.input_data import arguments_for_keras
    >>> tfd = tfp.distributions
    >>> model = tfr.FlowModel(tfd.Sample(tfd.Normal(tf.Variable(0.), 1.), [4, 4, 1]))
    >>> arguments = arguments_for_keras(model, 'fit', np.zeros([5, 4, 4, 1]), batch_size=2)
    >>> [batch.shape[0] for batch in arguments['x'].get_tf_dataset()]
    [2, 2, 1]

    Args:
      model: a `FlowModel`.
      method: `'fit'`, `'evaluate'` or `'predict'`.
      *args: of the method.
      **kwargs: of the method.

    Raises:
      ValueError: if weights are given, or the data is not as `check_data` expects it, or Keras.
    """
    signature = inspect.signature(getattr(keras.Model, method))
    arguments = dict(signature.bind(None, *args, **kwargs).arguments)
    arguments.update(arguments.pop("kwargs", {}))
    del arguments["self"]
    for name in ("sample_weight", "class_weight"):
        _refuse_weights(name, arguments.get(name))
    batch_size = arguments.get("batch_size")
    if not (batch_size is None or isinstance(batch_size, numbers.Integral)):
        raise ValueError(
            f"FlowModel.{method}: expected an integer batch_size, got {type(batch_size).__name__}; "
            "`predict` takes conditions with the events, `predict((events, conditions))`."
        )
    x, y = (_with_arrays(arguments.pop(name, None)) for name in ("x", "y"))
    data = x if y is None else (x, y)
    check_data(data, model.distribution, gray_levels=model.dequantize)
    if method == "fit":
        _warn_of_few_levels(data, model.distribution)
    held_out = arguments.pop("validation_data", None)
    fraction = arguments.pop("validation_split", 0.0)
    if fraction and held_out is None:
        expected = "FlowModel: expected a validation_split in (0, 1)"
        validation.real(fraction, lambda x: 0 < x < 1, expected)
        (x, y), held_out = private_api.train_validation_split((x, y), fraction)
    if held_out is not None:
        *held_out, weights = keras.utils.unpack_x_y_sample_weight(held_out)
        _refuse_weights("sample_weight", weights)
        size = arguments.get("validation_batch_size") or batch_size
        steps = arguments.get("validation_steps")
        held_out_x, held_out_y = map(_with_arrays, held_out)
        arguments["validation_data"] = _batches(held_out_x, held_out_y, size, steps)
    if isinstance(x, tf.data.Dataset) and method == "fit":
        # Keras warns that it does not shuffle datasets, even where `shuffle` is not given.
        arguments.setdefault("shuffle", False)
    steps = arguments.get("steps_per_epoch" if method == "fit" else "steps")
    shuffle = method == "fit" and arguments.get("shuffle", True)
    data = _batches(x, y, batch_size, steps, shuffle)
    x, y = data if isinstance(data, tuple) else (data, None)
    return {**arguments, "x": x} if y is None else {**arguments, "x": x, "y": y}


class _ArrayBatches(private_api.ArrayDataAdapter):
    """The batches that Keras makes of arrays, without autotuning by `tf.data`."""

    def get_tf_dataset(self) -> tf.data.Dataset:
        with tf.device("CPU"):
            return without_autotune(super().get_tf_dataset())


def _batches(
    x: Any, y: Any, batch_size: Any, steps: int | None, shuffle: bool | str = False
) -> Any:
    """Returns what Keras takes as data, `x` or `(x, y)`, with autotuning off where possible."""
    if private_api.can_convert_arrays((x, y)):
        return _ArrayBatches(x, y, batch_size=batch_size, steps=steps, shuffle=shuffle)
    if isinstance(x, tf.data.Dataset):
        x = without_autotune(x)
    return x if y is None else (x, y)


def _with_arrays(data: Any) -> Any:
    """Returns data with a list of numbers as an array; for Keras it is a list of arrays.

    `None` in a tuple is left out, for Keras 3.10 fails for `(images, None)`.
    """
    if not isinstance(data, (tuple, list)):
        return data
    if isinstance(data, list) and all(np.ndim(leaf) == 0 for leaf in tf.nest.flatten(data)):
        return np.asarray(data)
    return type(data)(_with_arrays(part) for part in data if part is not None)


def _refuse_weights(name: str, weights: Any) -> None:
    if weights is not None:
        raise ValueError(f"FlowModel: expected no {name}, each event counts once.")


def check_data(data: Any, distribution: tfd.Distribution, *, gray_levels: bool) -> None:
    """Checks arrays before training: shape, gray levels, and all conditions.

    Of other data only an empty dataset is known before training.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp
    >>> from tfp_realnvp.training.input_data import check_data
    >>> images = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [4, 4, 1])
    >>> check_data(np.zeros([2, 4, 4, 1], np.uint8), images, gray_levels=True)

    Args:
      data: events, or events and conditions, in any form that `FlowModel.fit` takes.
      distribution: of the events.
      gray_levels: whether the values have to be integers, of any dtype.

    Raises:
      ValueError: if there are no events; they are not [B, H, W, C] with the gray levels of the
        model, or [B, D]; they are not finite; or the conditions are not as declared.
    """
    name, axes = _NAMES[distribution.event_shape.rank or 3]
    if data is None or (isinstance(data, tf.data.Dataset) and data.cardinality() == 0):
        what = "None" if data is None else "an empty dataset"
        raise ValueError(f"FlowModel: expected {name}, got {what}.")
    events = pixels.image_component(data)
    if not hasattr(events, "__array__"):
        return
    if hasattr(events, "to_numpy"):
        # Keras makes a column of a pandas series.
        events = events.to_numpy() if events.ndim == 2 else events.to_numpy()[:, np.newaxis]
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
    _check_finite(np.asarray(events), name)
    if gray_levels:
        num_values = distributions.find_num_values(distribution)
        pixels.check_gray_levels(events, "FlowModel", num_values)
    distributions.as_conditions(distribution, pixels.condition_component(data), "FlowModel")


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
    images = pixels.image_component(data)
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

    #### Example

    >>> import numpy as np, tensorflow as tf
    >>> from tfp_realnvp.training.input_data import events_of_batch
    >>> batch = (np.zeros([2, 4, 4, 1]), np.zeros([2]))
    >>> events_of_batch(batch, tf.TensorShape([4, 4, 1])).shape
    TensorShape([2, 4, 4, 1])

    Args:
      data: as `pixels.image_component` takes it.
      event_shape: of the distribution.

    Raises:
      ValueError: if the shape does not fit.
    """
    events = tf.convert_to_tensor(pixels.image_component(data))
    check_event_shape(events, event_shape)
    return events


def check_event_shape(events: Any, event_shape: tf.TensorShape) -> None:
    """Raises `ValueError` unless `events` is a batch of events of `event_shape`."""
    name, axes = _NAMES[event_shape.rank or 3]
    shape = tf.TensorShape(events.shape)
    if shape.rank != 1 + len(axes.split(",")) or not shape[1:].is_compatible_with(event_shape):
        sizes = axes if event_shape.rank is None else ", ".join(map(str, event_shape))
        raise ValueError(f"FlowModel: expected {name} [batch, {sizes}], got shape {shape}.")


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
