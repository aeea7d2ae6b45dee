"""The arguments of `fit`, `evaluate` and `predict`: those of Keras, with data as datasets."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import validation
from tfp_realnvp.networks import ConditionSpec
from tfp_realnvp.training.input_data import as_dataset, check_condition

__all__ = ["for_evaluate", "for_fit", "for_predict"]

_NO_WEIGHTS = "FlowModel: expected no {}, each image counts once."


def for_fit(spec: ConditionSpec | None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns the arguments for a `keras.Model.fit` that gets all data as datasets.

    Args:
      spec: of the declared condition.
      *args: as in `keras.Model.fit`.
      **kwargs: as in `keras.Model.fit`.

    Raises:
      ValueError: if conditions are not as declared, or weights of images are given.
    """
    arguments = _bound(keras.Model.fit, *args, **kwargs)
    data = _take_data(arguments)
    check_condition(data, spec)
    batch_size = arguments.pop("batch_size", None)
    data, held_out = _split(data, arguments.pop("validation_split", 0.0))
    held_out = arguments.pop("validation_data", held_out)
    if isinstance(held_out, tuple) and any(weights is not None for weights in held_out[2:]):
        raise ValueError(_NO_WEIGHTS.format("sample_weight"))
    if held_out is not None:
        size = arguments.pop("validation_batch_size", None) or batch_size
        arguments["validation_data"] = as_dataset(held_out, size)
    shuffle = arguments.pop("shuffle", True)
    return {**arguments, "x": as_dataset(data, batch_size, shuffle=shuffle), "shuffle": False}


def for_evaluate(spec: ConditionSpec | None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns the arguments for a `keras.Model.evaluate` that gets a dataset; see `for_fit`."""
    arguments = _bound(keras.Model.evaluate, *args, **kwargs)
    data = _take_data(arguments)
    check_condition(data, spec)
    batch_size = arguments.pop("batch_size", None)
    return {**arguments, "x": as_dataset(data, batch_size)}


def for_predict(spec: ConditionSpec | None, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns the arguments for a `keras.Model.predict` that gets a dataset; see `for_fit`."""
    arguments = _bound(keras.Model.predict, *args, **kwargs)
    data = arguments.pop("x")
    check_condition(data, spec)
    batch_size = arguments.pop("batch_size", None)
    return {**arguments, "x": as_dataset(data, batch_size)}


def _bound(method: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns the arguments of a call by name, without `self`."""
    arguments = inspect.signature(method).bind(None, *args, **kwargs).arguments
    arguments.update(arguments.pop("kwargs", {}))
    for name in ("sample_weight", "class_weight"):
        if arguments.get(name) is not None:
            raise ValueError(_NO_WEIGHTS.format(name))
    return {name: value for name, value in arguments.items() if name != "self"}


def _take_data(arguments: dict[str, Any]) -> Any:
    """Takes `x` and `y` out of the arguments of a call."""
    images, labels = arguments.pop("x", None), arguments.pop("y", None)
    if labels is None:
        return images
    if isinstance(images, tf.data.Dataset):
        raise ValueError("FlowModel: expected no y beside a dataset, which has its own labels.")
    return images, labels


def _split(arrays: Any, fraction: float) -> tuple[Any, Any]:
    """Returns arrays without their last part, a fraction of all images, and that part or `None`."""
    if not fraction:
        return arrays, None
    if isinstance(arrays, tf.data.Dataset):
        raise ValueError("FlowModel.fit: expected arrays with a validation_split, got a dataset.")
    validation.real(
        fraction, lambda x: 0 < x < 1, "FlowModel: expected a validation_split in (0, 1)"
    )
    number = math.floor(len(tf.nest.flatten(arrays)[0]) * (1 - fraction))
    return tuple(
        tf.nest.map_structure(lambda array, part=part: array[part], arrays)
        for part in (slice(None, number), slice(number, None))
    )
