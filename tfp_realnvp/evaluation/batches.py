"""Checked batches of images or vectors, and their noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import pixels
from tfp_realnvp.distributions import (
    VariationalDequantization,
    distribution_of,
    find_num_values,
)
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.tf_data import without_autotune

__all__ = [
    "checked_arguments",
    "checked_batches",
    "event_name",
    "model_parts",
    "needs_noise",
    "noise_function",
]

tfd = tfp.distributions

# Names of events, by their rank.
_EVENTS = {3: "images", 1: "vectors"}


def model_parts(
    caller: str,
    model: Any,
    dequantize: bool | None,
    dequantizer: VariationalDequantization | None,
) -> tuple[tfd.Distribution, bool | None, VariationalDequantization | None]:
    """Returns the distribution, and the noise of a `FlowModel` where none is given.

    Raises:
      TypeError: if `model` is neither a `FlowModel` nor a distribution.
    """
    distribution = distribution_of(model, caller)
    if isinstance(model, keras.Model):
        dequantize = model.dequantize if dequantize is None else dequantize
        dequantizer = model.dequantizer if dequantizer is None and dequantize else dequantizer
    return distribution, dequantize, dequantizer


def checked_arguments(
    caller: str, num_draws: int, batch_size: int, seed: int
) -> tuple[int, int, int]:
    """Returns the arguments as integers, or raises `ValueError` if one is out of range."""
    num_draws, batch_size = (
        validation.integer(value, 1, f"{caller}: expected {argument} of at least 1")
        for argument, value in (("num_draws", num_draws), ("batch_size", batch_size))
    )
    int32 = range(-(2**31), 2**31)
    seed = validation.real(seed, lambda x: x in int32, f"{caller}: expected an int32 seed")
    return num_draws, batch_size, int(seed)


def checked_batches(
    caller: str, distribution: tfd.Distribution, data: Any, batch_size: int, dequantize: bool
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields batches of events with their conditions or labels, or with `None`.

    Raises:
      ValueError: if there are no events, or they are not of the shape of the distribution's, not
        finite, or with `dequantize` not gray levels of the model.
    """
    shape = distribution.event_shape
    name = event_name(caller, distribution)
    num_values = find_num_values(distribution)
    number = 0
    for number, (events, condition) in enumerate(_batches(caller, data, batch_size), start=1):
        if events.ndim != 1 + shape.rank or not shape.is_compatible_with(events.shape[1:]):
            raise ValueError(
                f"{caller}: expected {name} [batch, {', '.join(map(str, shape))}], got "
                f"shape {events.shape} in batch {number}."
            )
        if not np.isfinite(events).all():
            kind = "gray levels" if dequantize and name == "images" else name
            raise ValueError(f"{caller}: expected finite {kind} in batch {number}.")
        if dequantize:
            pixels.check_gray_levels(events, caller, num_values)
        yield events, condition
    if not number:
        raise ValueError(f"{caller}: expected {name}, got none.")


def needs_noise(
    caller: str,
    distribution: tfd.Distribution,
    dequantize: bool | None,
    dequantizer: VariationalDequantization | None,
    num_draws: int,
) -> bool:
    """Returns `dequantize`, or its default.

    Raises:
      ValueError: if there is a `dequantizer` or there are several draws, and no noise.
    """
    if dequantize is None:
        is_image = event_name(caller, distribution) == "images"
        dequantize = is_image or dequantizer is not None
    validation.flag(dequantize, f"{caller}: expected a bool or None as dequantize")
    if not dequantize and (num_draws > 1 or dequantizer is not None):
        raise ValueError(
            f"{caller}: expected num_draws=1 and no dequantizer for values without noise, got "
            f"num_draws={num_draws} and dequantizer={dequantizer}; dequantize=True adds noise."
        )
    return dequantize


def noise_function(
    distribution: tfd.Distribution,
    dequantize: bool,
    dequantizer: VariationalDequantization | None,
) -> Callable[..., tuple[tf.Tensor, Any]]:
    """Returns a function of events and a seed, to values and the log density of the noise."""
    if dequantizer is None:
        noise = pixels.UniformNoise if dequantize else pixels.NoNoise
        return noise(distribution.dtype).dequantize
    noise_fn = tf.function(dequantizer.dequantize, autograph=False)
    return lambda events, seed: noise_fn(tf.constant(events), seed)


def event_name(caller: str, distribution: tfd.Distribution) -> str:
    """Returns `'images'` or `'vectors'`, or raises a `ValueError` for other events."""
    shape = distribution.event_shape
    if shape.rank not in _EVENTS:
        raise ValueError(
            f"{caller}: expected a distribution over images [H, W, C] or vectors [D], got events "
            f"of shape {shape}."
        )
    return _EVENTS[shape.rank]


def _batches(caller: str, data: Any, batch_size: int) -> Iterator[tuple[np.ndarray, Any]]:
    if isinstance(data, tf.data.Dataset):
        if data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(f"{caller}: expected a finite dataset, got an infinite one.")
        for batch in without_autotune(data).as_numpy_iterator():
            yield np.asarray(pixels.image_component(batch)), pixels.condition_component(batch)
        return
    events, conditions = np.asarray(pixels.image_component(data)), pixels.condition_component(data)
    for start in range(0, len(events), batch_size):
        part = slice(start, start + batch_size)
        yield events[part], None if conditions is None else np.asarray(conditions)[part]
