"""Batches of data in the forms that `FlowModel.predict` takes, and their scores."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import distributions, pixels
from tfp_realnvp.distributions import VariationalDequantization
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.batch_dims import slices
from tfp_realnvp.internal.graph_rewrites import few_graph_rewrites
from tfp_realnvp.internal.tf_data import without_autotune
from tfp_realnvp.training.flow_model import FlowModel
from tfp_realnvp.training.input_data import as_arrays, check_data

__all__ = ["batches", "check_no_weights", "log_mean_exp", "model_of", "scores_of_batches"]

tfd = tfp.distributions

Batch = tuple[tf.Tensor, tf.Tensor | None]


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
      dequantizer: as in `FlowModel`; for a distribution it implies `dequantize=True`.
      seed: as in `FlowModel`.

    Raises:
      TypeError: if `model` is neither, or `dequantize` is not a bool.
      ValueError: as `FlowModel`.
    """
    distribution = distributions.distribution_of(model, caller)
    given = {"dequantize": dequantize, "dequantizer": dequantizer, "seed": seed}
    options: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
    if not isinstance(model, FlowModel):
        return FlowModel(distribution, **{"dequantize": True if dequantizer else None, **options})
    own: dict[str, Any] = {
        name: getattr(model, name) for name in ("dequantize", "dequantizer", "seed")
    }
    if dequantize is False:
        own["dequantizer"] = None
    if own | options == own:
        return model
    with model.distribute_strategy.scope():
        return FlowModel(distribution, **(own | options))


def scores_of_batches(
    model: FlowModel,
    caller: str,
    data: Any,
    *,
    num_samples: int = 1,
    num_classes: int | None = None,
    **options: Any,
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields the log densities of each batch, [B, K] or [B, K, C], and the batch.

    Args:
      model: of the distribution and its noise.
      caller: name that begins error messages.
      data: as in `batches`.
      num_samples: number of noise samples K; 1 without noise.
      num_classes: number of classes C, see `distributions.scores`.
      **options: of `batches`.
    """
    num_samples = validation.count(num_samples, "num_samples", 1, caller)
    if num_samples > 1 and not model.dequantize:
        raise ValueError(
            f"{caller}: expected one noise sample for values without noise, got {num_samples}; "
            "dequantize=True adds noise."
        )
    score_options: dict[str, Any] = {
        "num_samples": num_samples,
        "seed": model.seed,
        "num_classes": num_classes,
        "jit_compile": model.jit_compile,
    }
    density = model.distribution, model.noise
    rewrites = contextlib.nullcontext if model.gains_from_rewrites else few_graph_rewrites
    for events, condition in batches(model, caller, data, **options):
        condition_of_score = condition if num_classes is None else None
        with rewrites(True):
            log_probs = distributions.scores(*density, events, condition_of_score, **score_options)
        yield log_probs.numpy().swapaxes(0, 1), (events, condition)


def batches(
    model: FlowModel,
    caller: str,
    data: Any,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    verbose: int = 0,
) -> Iterator[Batch]:
    """Yields events and conditions in batches, checked, in the dtype of the distribution.

    Args:
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
    data = as_arrays(data[:2] if isinstance(data, tuple) else data)
    check_data(data, model.distribution, gray_levels=model.dequantize)
    parts: Iterable[tuple[np.ndarray, tf.Tensor | None]]
    total = steps
    if hasattr(pixels.image_component(data), "__array__"):
        events, condition = _events_and_condition(model, caller, data)
        parts, total = slices(batch_size, events, condition), -(-len(events) // batch_size)
    else:
        parts = (_checked_batch(model, caller, part) for part in _iterable(data, caller, steps))
    progress, is_empty = keras.utils.Progbar(total, verbose=verbose), True
    for events, condition in itertools.islice(parts, steps):
        yield tf.constant(events.astype(model.distribution.dtype.as_numpy_dtype)), condition
        progress.add(1)
        is_empty = False
    if is_empty:
        raise ValueError(f"{caller}: expected data, got an empty dataset.")


def _iterable(data: Any, caller: str, steps: int | None) -> Iterable[Any]:
    if isinstance(data, keras.utils.PyDataset):
        return (data[i] for i in range(steps or data.num_batches))
    if isinstance(data, tf.data.Dataset):
        if steps is None and data.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(f"{caller}: expected a finite dataset, or `steps`.")
        return without_autotune(data)
    return data


def _checked_batch(model: FlowModel, caller: str, data: Any) -> tuple[np.ndarray, Any]:
    events, condition = _events_and_condition(model, caller, as_arrays(data))
    check_data((events, condition), model.distribution, gray_levels=model.dequantize)
    return events, condition


def _events_and_condition(model: FlowModel, caller: str, data: Any) -> tuple[np.ndarray, Any]:
    events, condition = np.asarray(pixels.image_component(data)), model.condition_of(data)
    if condition is not None and len(condition) != len(events):
        raise ValueError(
            f"{caller}: expected one condition for each of {len(events)} events, got "
            f"{len(condition)}."
        )
    return events, condition


def check_no_weights(data: Any, caller: str) -> None:
    """Raises `ValueError` if data have weights, which the means of an evaluation do not use.

    Args:
      data: as in `batches`. The batches of a generator are not seen.
      caller: name that begins the error message.
    """
    structure = data.element_spec if isinstance(data, tf.data.Dataset) else data
    if pixels.weight_component(structure) is not None:
        raise ValueError(
            f"{caller}: expected events without sample weights; `FlowModel.evaluate` takes them."
        )


def log_mean_exp(log_probs: np.ndarray) -> np.ndarray:
    """Returns the log of the mean over noise samples of densities [N, K, ...], float64."""
    log_probs = np.asarray(log_probs, np.float64)
    return np.logaddexp.reduce(log_probs, axis=1) - np.log(log_probs.shape[1])
