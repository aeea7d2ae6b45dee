"""Batches of data in the forms that `FlowModel.predict` takes, and their scores."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import distributions
from tfp_realnvp.distributions import VariationalDequantization
from tfp_realnvp.internal import batch_parts, validation
from tfp_realnvp.internal.batch_dims import slices
from tfp_realnvp.internal.tf_data import without_autotune
from tfp_realnvp.training.flow_model import FlowModel
from tfp_realnvp.training.input_data import as_arrays, check_data

__all__ = ["check_no_weights", "log_mean_exp", "map_batches", "model_of", "scorer"]

tfd = tfp.distributions


def model_of(
    model: FlowModel | tfd.Distribution,
    caller: str,
    *,
    dequantize: bool | None = None,
    dequantizer: VariationalDequantization | None = None,
    seed: int | None = None,
) -> FlowModel:
    """Returns a `FlowModel` of a model or a distribution, with other options of its noise if given.

    Args:
      model: a `FlowModel` or a distribution.
      caller: name that begins error messages.
      dequantize: as in `FlowModel`.
      dequantizer: as in `FlowModel`.
      seed: as in `FlowModel`.

    Raises:
      TypeError: if `model` is neither, or `dequantize` is not a bool.
      ValueError: as `FlowModel`.
    """
    distribution = distributions.distribution_of(model, caller)
    given = {"dequantize": dequantize, "dequantizer": dequantizer, "seed": seed}
    options: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
    if not isinstance(model, FlowModel):
        return FlowModel(distribution, **options)
    own: dict[str, Any] = {name: getattr(model, name) for name in given}
    if dequantize is False:
        own["dequantizer"] = None
    if own | options == own:
        return model
    with model.distribute_strategy.scope():
        return FlowModel(distribution, **(own | options))


def scorer(
    model: FlowModel, caller: str, num_samples: int, num_classes: int | None = None
) -> Callable[..., np.ndarray]:
    """Returns a function from events and conditions to log densities, [B, K] or [B, K, C].

    Args:
      model: of the distribution and its noise.
      caller: name that begins error messages.
      num_samples: number of noise samples K; 1 without noise.
      num_classes: number of classes C, see `distributions.scores`.

    Raises:
      ValueError: if there are several samples of no noise.
    """
    num_samples = validation.count(num_samples, "num_samples", 1, caller)
    if num_samples > 1 and not model.dequantize:
        raise ValueError(
            f"{caller}: expected one noise sample for values without noise, got {num_samples}; "
            "dequantize=True adds noise."
        )
    options: dict[str, Any] = {"num_samples": num_samples, "num_classes": num_classes}
    options |= {"seed": model.seed, "jit_compile": model.jit_compile}

    def scores(*batch: tf.Tensor) -> np.ndarray:
        by_sample = distributions.scores(model.distribution, model.noise, *batch, **options)
        return by_sample.numpy().swapaxes(0, 1)

    return scores


def map_batches(
    function: Callable[..., Any],
    model: FlowModel,
    caller: str,
    data: Any,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    verbose: int = 0,
) -> Any:
    """Returns the results of a function of events, and their condition if any, of all batches.

    Args:
      function: returns one or several arrays for events in the dtype of the distribution.
      model: that the data are for.
      caller: name that begins error messages.
      data: arrays, tensors, frames, or lists; a tuple of events and conditions; a dictionary with
        `'image'`, and `'conditional_input'` or `'label'`; or a `tf.data.Dataset`, a
        `keras.utils.PyDataset` or another iterable of batches of one of these.
      batch_size: number of events in a batch of arrays.
      steps: number of batches; by default all.
      verbose: 1 prints the progress.

    Raises:
      ValueError: if there are no events, or they or their conditions are not as the model declares.
    """
    batch_size = validation.count(batch_size, "batch_size", 1, caller)
    dtype, gray_levels = model.distribution.dtype.as_numpy_dtype, model.dequantize
    data = as_arrays(data[:2] if isinstance(data, tuple) else data)
    check_data(data, model.distribution, gray_levels=gray_levels)

    def checked(part: Any) -> tuple[Any, ...]:
        part = as_arrays(part)
        events, condition = np.asarray(batch_parts.events_in(part)), model.condition_of(part)
        check_data((events, condition), model.distribution, gray_levels=gray_levels)
        if condition is None:
            return (events,)
        expected = f"{caller}: expected one condition for each of {len(events)} events"
        validation.require(len(condition) == len(events), expected, len(condition))
        return events, condition

    if hasattr(batch_parts.events_in(data), "__array__"):
        batches = slices(batch_size, *checked(data))
        steps = steps or -(-len(batch_parts.events_in(data)) // batch_size)
    else:
        batches = map(checked, _iterable(data, caller, steps))
    progress, results = keras.utils.Progbar(steps, verbose=verbose), []
    for events, *condition in itertools.islice(batches, steps):
        results.append(function(tf.constant(events.astype(dtype)), *condition))
        progress.add(1)
    if not results:
        raise ValueError(f"{caller}: expected data, got an empty dataset.")
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *results)


def _iterable(data: Any, caller: str, steps: int | None) -> Iterable[Any]:
    if isinstance(data, keras.utils.PyDataset):
        return (data[i] for i in range(steps or data.num_batches))
    if not isinstance(data, tf.data.Dataset):
        return data
    if steps is None and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{caller}: expected a finite dataset, or `steps`.")
    return without_autotune(data)


def check_no_weights(data: Any, caller: str) -> None:
    """Raises `ValueError` if data have weights, which the means of an evaluation do not use.

    Args:
      data: as in `map_batches`. The batches of a generator are not seen.
      caller: name that begins the error message.
    """
    structure = data.element_spec if isinstance(data, tf.data.Dataset) else data
    if batch_parts.weights_in(structure) is not None:
        raise ValueError(
            f"{caller}: expected events without sample weights; `FlowModel.evaluate` takes them."
        )


def log_mean_exp(log_probs: np.ndarray) -> np.ndarray:
    """Returns the log of the mean over noise samples of densities [N, K, ...], float64."""
    log_probs = np.asarray(log_probs, np.float64)
    return np.logaddexp.reduce(log_probs, axis=1) - np.log(log_probs.shape[1])
