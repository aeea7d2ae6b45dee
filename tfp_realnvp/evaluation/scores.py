"""Scores of data in batches: log densities of each event, in the forms that `predict` takes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.distributions.routing import distribution_of
from tfp_realnvp.distributions.scorer import scores
from tfp_realnvp.internal import batch_parts, validation
from tfp_realnvp.internal.batch_dims import slices
from tfp_realnvp.internal.tf_data import without_autotune
from tfp_realnvp.training.diagnosis import warn_unless_finite
from tfp_realnvp.training.flow_model import FlowModel
from tfp_realnvp.training.input_data import as_arrays, check_data

__all__ = [
    "check_no_weights",
    "checked_num_samples",
    "log_mean_exp",
    "log_prob",
    "map_batches",
    "model_of",
    "sampled_log_probs",
]

tfd = tfp.distributions


def log_prob(
    model: FlowModel | tfd.Distribution,
    data: Any,
    conditional_input: Any = None,
    *,
    num_samples: int = 1,
    **kwargs: Any,
) -> np.ndarray:
    r"""Returns log p in nats of images with their gray levels, or of vectors.

    Gray levels are integers, of any dtype. As in training, noise in [0, 1) is added to them. For
    images x and K noise samples this is

    ```
    log 1/K sum_k p(x + u_k),   u_k ~ U[0, 1)^D
    ```

    whose mean is at most the log probability of the integers (Theis, van den Oord, Bethge 2016,
    section 3.1). The seed of the model and the gray levels of an image determine its noise, so that
    its score depends neither on its place nor on other images. More samples make the bound tighter,
    and the score less random. Vectors get no noise.

    `distribution.log_prob` takes continuous pixel values. `tfr.evaluation.log_likelihood` gives the
    mean over a dataset with its standard error, `tfr.evaluation.bits_per_dim` in bits/dim.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [8, 8, 1]),
    ...     tfr.RealNVPImage((8, 8, 1), num_scales=1, num_blocks=1, num_filters=4))
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 1], dtype=np.uint8)
    >>> tfr.log_prob(flow, images).shape
    (3,)
    >>> tfr.log_prob(flow, images, num_samples=4).shape   # a tighter bound
    (3,)

    Args:
      model: a `FlowModel`; or its distribution, with uniform noise. The first call traces the
        distribution.
      data: events [N, H, W, C] or [N, D], or other data that `FlowModel.predict` takes. They are
        cast to the dtype of the distribution.
      conditional_input: conditions of the events [N, ...], if the distribution takes any.
      num_samples: number of noise samples K, one pass of the networks each.
      **kwargs: `batch_size` of arrays, 32 by default; `steps`, the number of batches, for a dataset
        without end; and `verbose`, as in `FlowModel.predict`, but 0 by default.

    Returns:
      Log densities [N]; with a `VariationalDequantization` q, of p(x + u) / q(u | x).

    Raises:
      TypeError: if `model` is neither a `FlowModel` nor a distribution.
      ValueError: if events or conditions are not as declared, or there are several noise samples of
        values without noise.
    """
    caller = "log_prob"
    if conditional_input is not None:
        data = (data, conditional_input)
    model = model_of(model, caller)
    samples, _ = sampled_log_probs(caller, model, data, num_samples=num_samples, **kwargs)
    log_probs = log_mean_exp(samples).astype(samples.dtype)
    warn_unless_finite(log_probs, "predict")
    return log_probs


def model_of(model: FlowModel | tfd.Distribution, caller: str, **options: Any) -> FlowModel:
    """Returns a `FlowModel` of a model or a distribution.

    The options `dequantize`, `dequantizer` and `seed` replace those of the model unless they are
    `None`. Errors are those of `FlowModel`.
    """
    distribution = distribution_of(model, caller)
    options = {name: value for name, value in options.items() if value is not None}
    if not isinstance(model, FlowModel):
        return FlowModel(distribution, **options)
    own = {name: getattr(model, name) for name in ("dequantize", "dequantizer", "seed")}
    if options.get("dequantize") is False:
        own["dequantizer"] = None
    if own | options == own:
        return model
    with model.distribute_strategy.scope():
        return FlowModel(distribution, **(own | options))


def sampled_log_probs(
    caller: str, model: FlowModel, data: Any, *, num_samples: int, **kwargs: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns log densities of K noise samples, [N, K], and the number of elements of events, [N].

    The options are those of `map_batches`.
    """
    options: dict[str, Any] = {"num_samples": checked_num_samples(caller, model, num_samples)}
    options |= {"seed": model.seed, "jit_compile": model.jit_compile}

    def score(events: tf.Tensor, *condition: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        batch = (events, *condition)
        by_sample = scores(model.distribution, model.noise, *batch, **options)
        return by_sample.numpy().T, np.full(len(events), math.prod(events.shape[1:]))

    return map_batches(score, model, caller, data, **kwargs)


def checked_num_samples(caller: str, model: FlowModel, num_samples: int) -> int:
    """Returns a number of noise samples; raises `ValueError` for several samples without noise."""
    num_samples = validation.count(num_samples, "num_samples", 1, caller)
    expected = f"{caller}: expected one noise sample unless dequantize=True adds noise to values"
    validation.require(num_samples == 1 or model.dequantize, expected, num_samples)
    return num_samples


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
    """Calls a function with the events, and the conditions if any, of each batch.

    Returns the concatenated results.

    Args:
      function: returns one or several arrays for events in the dtype of the distribution.
      model: that the data are for.
      caller: name that begins error messages.
      data: arrays, tensors, frames, or lists; a tuple of events and conditions; a dictionary with
        `'image'`, and `'conditional_input'` or `'label'`; or a `tf.data.Dataset`, a
        `keras.utils.PyDataset` or another iterable of batches of one of these.
      batch_size, steps, verbose: as in `log_prob`.

    Raises:
      ValueError: if there are no events, or they or their conditions are not as the model declares.
    """
    batch_size = validation.count(batch_size, "batch_size", 1, caller)
    distribution, gray_levels = model.distribution, model.dequantize
    data = as_arrays(data[:2] if isinstance(data, tuple) else data)
    check_data(data, distribution, gray_levels=gray_levels)

    def split(part: Any) -> tuple[Any, ...]:
        events, condition = np.asarray(batch_parts.events_in(part)), model.condition_of(part)
        if condition is None:
            return (events,)
        expected = f"{caller}: expected one condition for each of {len(events)} events"
        validation.require(len(condition) == len(events), expected, len(condition))
        return events, condition

    def checked(part: Any) -> tuple[Any, ...]:
        batch = split(as_arrays(part))
        check_data(batch, distribution, gray_levels=gray_levels)
        return batch

    if hasattr(batch_parts.events_in(data), "__array__"):
        events, *condition = split(data)
        batches = slices(batch_size, events, *condition)
        steps = steps or -(-len(events) // batch_size)
    else:
        batches = map(checked, _batches_of(data, caller, steps))
    progress, results = keras.utils.Progbar(steps, verbose=verbose), []
    for events, *condition in itertools.islice(batches, steps):
        events = events.astype(distribution.dtype.as_numpy_dtype)
        results.append(function(tf.constant(events), *condition))
        progress.add(1)
    if not results:
        raise ValueError(f"{caller}: expected data, got an empty dataset.")
    return keras.tree.map_structure(lambda *parts: np.concatenate(parts), *results)


def _batches_of(data: Any, caller: str, steps: int | None) -> Iterable[Any]:
    if isinstance(data, keras.utils.PyDataset):
        return (data[i] for i in range(steps or data.num_batches))
    if not isinstance(data, tf.data.Dataset):
        return data
    if steps is None and data.cardinality() == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"{caller}: expected a finite dataset, or `steps`.")
    return without_autotune(data)


def check_no_weights(data: Any, caller: str) -> None:
    """Raises `ValueError` if data have weights, which the means of an evaluation do not use."""
    structure = data.element_spec if isinstance(data, tf.data.Dataset) else data
    weights = batch_parts.weights_in(structure)
    expected = f"{caller}: expected events without sample weights, which `FlowModel.evaluate` takes"
    validation.require(weights is None, expected, weights)


def log_mean_exp(log_probs: np.ndarray) -> np.ndarray:
    """Returns the log of the mean density of K noise samples, from log densities [N, K]."""
    log_probs = np.asarray(log_probs, np.float64)
    return np.logaddexp.reduce(log_probs, axis=1) - np.log(log_probs.shape[1])
