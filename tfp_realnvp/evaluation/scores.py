"""Log densities of each event of a dataset, in batches."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_realnvp.distributions import routing, scorer
from tfp_realnvp.distributions.data_spec import DataSpec, as_arrays, parse
from tfp_realnvp.internal import batch_dims, private_api, runtime, validation


def log_prob(
    model: keras.Model | tfd.Distribution,
    data: Any,
    conditional_input: Any = None,
    *,
    num_samples: int = 1,
    **kwargs: Any,
) -> np.ndarray:
    r"""Returns log densities of gray-level images or of vectors, in nats.

    Gray levels are whole numbers of any dtype. As in training, the function adds noise in [0, 1).
    For each image x and K noise samples u_k, it returns

    ```
    log 1/K sum_k p(x + u_k),   u_k ~ U[0, 1)^D
    ```

    In expectation, this is a lower bound on the log probability of the integers (Theis, van den
    Oord, Bethge 2016, section 3.1). More samples make the bound tighter. The noise of an image
    depends only on the model's seed and the image. With a `VariationalDequantization` q,
    p(x + u) / q(u | x) replaces p(x + u). Vectors get no noise.

    For continuous pixel values, call `distribution.log_prob`. For the mean over a dataset with its
    standard error, call `tfr.evaluation.log_likelihood` or `tfr.evaluation.bits_per_dim`.

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
      model: a `FlowModel`, or a distribution, for which gray levels get uniform noise.
      data: images [N, H, W, C], vectors [N, D], or other data that `FlowModel.predict` takes. The
        function casts them to the distribution's dtype.
      conditional_input: conditions [N, ...], if the distribution has a condition.
      num_samples: number of noise samples K. Each sample costs one pass of the networks.
      **kwargs: `batch_size` for arrays, by default 32; `steps`, the number of batches from an
        infinite dataset; and `verbose`, by default 0.

    Raises:
      TypeError: if `model` is neither a `FlowModel` nor a distribution, or an option is unknown.
      ValueError: if events or conditions are invalid, or `num_samples` has no effect.

    Issues a `UserWarning` within a `tf.GradientTape`, because the result has no gradient.
    """
    caller = "log_prob"
    if private_api.could_possibly_record():
        warnings.warn(
            "tfr.log_prob: the result is an array, without gradients for the gradient tape; "
            "`distribution.log_prob(x)` has gradients, with x of `tfr.dequantize` for gray levels.",
            stacklevel=2,
        )
    if conditional_input is not None:
        data = (data, conditional_input)
    spec, jit_compile = spec_of(model, caller), getattr(model, "jit_compile", False)
    options = {"num_samples": num_samples, "jit_compile": jit_compile, **kwargs}
    samples, _ = sampled_log_probs(caller, spec, data, **options)
    log_probs = log_mean_exp(samples).astype(samples.dtype)
    validation.warn_unless_finite(log_probs, f"tfr.{caller}")
    return log_probs


def spec_of(model: keras.Model | tfd.Distribution, caller: str, **options: Any) -> DataSpec:
    """Returns what data a model or a distribution takes.

    Options override the model's `dequantize`, `dequantizer` and `seed`, unless they are `None`.
    """
    distribution = routing.distribution_of(model, caller)
    names = ["dequantize", "seed", *(["dequantizer"] * (options.get("dequantize") is not False))]
    own = {name: getattr(model, name, None) for name in names}
    options = own | {name: value for name, value in options.items() if value is not None}
    options["distribution"] = distribution
    known = getattr(model, "data_spec", None)
    if known is not None and all(getattr(known, k) is v for k, v in options.items()):
        return known
    spec = DataSpec(**{k: v for k, v in options.items() if v is not None})
    spec.build_networks()
    return spec


def sampled_log_probs(
    caller: str, spec: DataSpec, data: Any, *, num_samples: int, jit_compile: bool, **kwargs: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns log densities for K noise samples, [N, K], and the sizes of the events, [N]."""
    options: dict[str, Any] = {"num_samples": checked_num_samples(caller, spec, num_samples)}
    options |= {"seed": spec.seed, "jit_compile": jit_compile}

    def score(events: tf.Tensor, *condition: tf.Tensor) -> tuple[np.ndarray, np.ndarray]:
        by_sample = scorer.scores(spec.distribution, spec.noise, events, *condition, **options)
        return by_sample.numpy().T, np.full(len(events), math.prod(events.shape[1:]))

    return map_batches(score, spec, caller, data, **kwargs)


def checked_num_samples(caller: str, spec: DataSpec, num_samples: int) -> int:
    """Returns a valid `num_samples`, which must be 1 if no noise is added."""
    num_samples = validation.count(num_samples, "num_samples", 1, caller)
    expected = f"{caller}: expected num_samples=1 unless dequantize=True adds noise to values"
    validation.require(num_samples == 1 or spec.dequantize, expected, num_samples)
    return num_samples


def map_batches(
    function: Callable[..., Any],
    spec: DataSpec,
    caller: str,
    data: Any,
    *,
    batch_size: int = 32,
    steps: int | None = None,
    verbose: int = 0,
    **unknown: Any,
) -> Any:
    """Applies a function to each batch of events and conditions, and concatenates the results.

    `function` takes events in the distribution's dtype, and returns one or several arrays. `data`
    has any form that `bits_per_dim` takes. Error messages begin with `caller`.
    """
    validation.known_options(unknown, ["batch_size", "steps", "verbose"], caller)
    batch_size = validation.count(batch_size, "batch_size", 1, caller)
    data = as_arrays(data)
    parts = parse(data)._replace(weights=None)
    routing.check_context(spec.takes_condition, caller, parts.condition)
    spec.check(parts, caller, stacklevel=4)
    is_array = hasattr(parts.events, "__array__")
    if is_array:
        batches: Iterable[Any] = batch_dims.slices(batch_size, parts.events, parts.condition)
        steps = steps or -(-len(parts.events) // batch_size)
    else:
        batches = _batches_of(data, caller, steps)
    progress, results = keras.utils.Progbar(steps, verbose=verbose), []
    for part in itertools.islice(batches, steps):
        part = parse(as_arrays(part))._replace(weights=None)
        if not is_array:
            spec.check_values(part)
        batch, _ = spec.batch(part)
        events = tf.cast(batch.events, spec.distribution.dtype)
        results.append(function(events, *([] if batch.condition is None else [batch.condition])))
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
    return runtime.without_autotune(data)


def check_no_weights(data: Any, caller: str) -> None:
    """Raises `ValueError` if data contain sample weights, which `tfr.evaluation` does not use."""
    structure = data.element_spec if isinstance(data, tf.data.Dataset) else data
    weights = parse(structure).weights
    expected = f"{caller}: expected events without sample weights; `FlowModel.evaluate` takes them"
    validation.require(weights is None, expected, weights)


def log_mean_exp(log_probs: np.ndarray) -> np.ndarray:
    """Returns the log mean density over K noise samples, from log densities [N, K]."""
    log_probs = np.asarray(log_probs, np.float64)
    return np.logaddexp.reduce(log_probs, axis=1) - np.log(log_probs.shape[1])
