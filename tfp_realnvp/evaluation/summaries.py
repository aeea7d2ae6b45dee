"""Log likelihood, bits per dimension, and classification by Bayes' rule on a dataset."""

import dataclasses
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike
from tensorflow_probability import distributions as tfd

from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.distributions import VariationalDequantization
from tfp_realnvp.distributions.classification import class_log_prior, log_joint_of
from tfp_realnvp.distributions.data_spec import DataSpec, parse
from tfp_realnvp.evaluation import scores
from tfp_realnvp.internal import validation


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of `bits_per_dim` (in bits/dim) or `log_likelihood` (in nats).

    Attributes:
      mean: mean over events and noise samples.
      standard_error: standard error of `mean` over events; NaN for a single event.
      importance_weighted: mean over events of the tighter, importance-weighted bound; for one noise
        sample, equal to `mean`.
      importance_weighted_error: standard error of `importance_weighted`.
      num_events: number of events.
      num_samples: number of noise samples K per event.
      unit: `'bits/dim'` or `'nats'`.
    """

    mean: float
    standard_error: float
    importance_weighted: float
    importance_weighted_error: float
    num_events: int
    num_samples: int
    unit: str


@dataclasses.dataclass(frozen=True)
class Classification:
    """The result of `classification`.

    Attributes:
      accuracy: fraction of events whose label is the most probable class.
      expected_calibration_error: mean of |accuracy - confidence| over 15 bins of confidence,
        weighted by the number of events (Guo, Pleiss, Sun, Weinberger 2017, equation 3).
      log_loss: mean of -log p(label | image), in nats.
      num_events: number of events.
      confusion_matrix: number of events by label (row) and most probable class (column), as nested
        tuples.
    """

    accuracy: float
    expected_calibration_error: float
    log_loss: float
    num_events: int
    confusion_matrix: tuple[tuple[int, ...], ...]


def bits_per_dim(
    model: keras.Model | tfd.Distribution,
    data: Any,
    *,
    num_samples: int = 1,
    dequantizer: VariationalDequantization | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    r"""Returns the mean bits/dim of a model on images, with its standard error.

    With K noise samples u₁ … u_K from U[0, 1)ᴰ for each image x of gray levels, and D = H W C,
    the function computes

    ```
    mean                = mean over x of    -1/D mean_k log2 p(x + u_k)
    importance_weighted = mean over x of    -1/D log2 mean_k p(x + u_k)
    ```

    In expectation, `mean` and `importance_weighted` are upper bounds on the bits/dim of the integer
    images, `-1/D log2 ∫ p(x + u) du`. They are equal for K = 1; `importance_weighted` is tighter
    for larger K. The noise of an image depends only on the seed and the image. `FlowModel.evaluate`
    computes `mean` for K = 1 and the model's seed.

    With a `VariationalDequantization` q, p(x + u) / q(u | x) replaces p(x + u). For a conditional
    distribution, pass conditions: `bits_per_dim(flow, (images, labels))`. Conditions are optional
    for a flow with `condition_dropout`.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp
    >>> from tfp_realnvp import evaluation
    >>> uniform = tfp.distributions.Sample(tfp.distributions.Uniform(0., 256.), [4, 4, 3])
    >>> images = np.random.default_rng(0).integers(0, 256, [10, 4, 4, 3], dtype=np.uint8)
    >>> result = evaluation.bits_per_dim(uniform, images, num_samples=2)
    >>> round(result.mean, 5), result.num_events
    (8.0, 10)

    #### References

    Theis, van den Oord, Bethge: A note on the evaluation of generative models, section 3.1.
    Burda, Grosse, Salakhutdinov: Importance weighted autoencoders, section 3.

    Args:
      model: a `FlowModel`, or a distribution over pixel values [H, W, C] in [0, num_values).
      data: gray levels [N, H, W, C], or continuous values for `dequantize=False`; a tuple of these
        and their conditions; a dictionary with `'image'`, and `'conditional_input'` or `'label'`;
        or a finite `tf.data.Dataset` or other iterable of batches of these.
      num_samples: number of noise samples K.
      dequantizer: distribution of the noise. Defaults to the dequantizer of the `FlowModel`, or
        uniform noise.
      seed: seed of the noise, an integer.
      batch_size: batch size for arrays.

    Raises:
      ValueError: if there are no images, they are not gray levels of the event shape, conditions
        are missing or not as declared, or a log density is not finite.
      TypeError: if `model` is neither a `FlowModel` nor a distribution.
    """
    caller = "bits_per_dim"
    spec = scores.spec_of(model, caller, dequantizer=dequantizer, seed=seed)
    expected = "bits_per_dim: expected images (log_likelihood evaluates vectors, in nats)"
    validation.require(spec.event_ndims == 3, expected, spec.distribution.event_shape)
    options = {"num_samples": num_samples, "batch_size": batch_size}
    return _evaluated(caller, model, spec, data, "bits/dim", **options)


def log_likelihood(
    model: keras.Model | tfd.Distribution,
    data: Any,
    *,
    num_samples: int = 1,
    dequantize: bool | None = None,
    dequantizer: VariationalDequantization | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Evaluation:
    r"""Returns a model's mean log density on vectors or images in nats, with its standard error.

    ```
    mean                = mean over x of    log p(x)   for continuous values; for integers
                          mean over x of    mean_k log p(x + u_k) / q(u_k | x)
    importance_weighted = mean over x of    log mean_k p(x + u_k) / q(u_k | x)
    ```

    with K noise samples u₁ … u_K from q(u | x), whose density is 1 for uniform noise. For integers,
    both are lower bounds on the log probability in expectation; `importance_weighted` is tighter.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp
    >>> from tfp_realnvp import evaluation
    >>> tfd = tfp.distributions
    >>> x = np.random.default_rng(0).normal(size=[1000, 5])
    >>> result = evaluation.log_likelihood(tfd.Sample(tfd.Normal(0., 1.), [5]), x)
    >>> round(result.mean, 2), round(result.standard_error, 2)
    (-7.07, 0.05)

    Args:
      model: a `FlowModel`, or a distribution over vectors [D] or images [H, W, C].
      data: vectors [N, D] or images [N, H, W, C], in any form that `bits_per_dim` takes. In a
        dictionary, vectors have the key `'x'`.
      num_samples: number of noise samples K; must be 1 without noise.
      dequantize: whether values are integers that need noise. Defaults to the option of the
        `FlowModel`; for a distribution, `True` for images and `False` for vectors.
      dequantizer, seed, batch_size: as in `bits_per_dim`.

    Raises:
      TypeError, ValueError: as in `bits_per_dim`, or if an argument has no effect.
    """
    caller = "log_likelihood"
    spec = scores.spec_of(model, caller, dequantize=dequantize, dequantizer=dequantizer, seed=seed)
    options = {"num_samples": num_samples, "batch_size": batch_size}
    return _evaluated(caller, model, spec, data, "nats", **options)


def classification(
    model: keras.Model | tfd.Distribution,
    data: Any,
    labels: ArrayLike | None = None,
    prior: ArrayLike | None = None,
    *,
    num_samples: int = 1,
    dequantize: bool | None = None,
    dequantizer: VariationalDequantization | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Classification:
    r"""Evaluates a class-conditional distribution as a classifier by Bayes' rule.

    For an image x of gray levels and K noise samples u₁ … u_K from U[0, 1)ᴰ, which are the same for
    all classes, Bayes' rule is

    ```
    p(y | x) = p(y) mean_k p(x + u_k | y) / sum_y' p(y') mean_k p(x + u_k | y')
    ```

    More samples make the classifier more accurate. With a `VariationalDequantization` q, p(x + u |
    y) / q(u | x) replaces p(x + u | y). Vectors get noise only with `dequantize=True`.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> from tfp_realnvp import evaluation
    >>> base = tfp.distributions.Sample(tfp.distributions.Normal(0., 1.), [4, 4, 1])
    >>> flow = tfp.distributions.TransformedDistribution(
    ...     base, tfr.RealNVPImage((4, 4, 1), num_scales=1, num_blocks=0, num_filters=4,
    ...                            num_classes=2))
    >>> images = np.random.default_rng(0).integers(0, 256, [10, 4, 4, 1], dtype=np.uint8)
    >>> result = evaluation.classification(flow, images, np.arange(10) % 2)
    >>> result.accuracy, round(result.log_loss, 3)   # Before training, classes are alike.
    (0.5, 0.693)
    >>> np.array(result.confusion_matrix).sum(axis=1)   # Images of each label.
    array([5, 5])

    Args:
      model: as `distribution` in `class_log_joint`.
      data: gray levels [N, H, W, C] or vectors [N, D]; with labels as a tuple, dictionary or
        `tf.data.Dataset`, as in `log_likelihood`.
      labels: integers [N], if `data` has no labels.
      prior: as in `class_log_joint`.
      num_samples, dequantize, dequantizer, seed: as in `log_likelihood`.
      batch_size: batch size for arrays. The networks evaluate each event under all classes.

    Raises:
      ValueError: as in `bits_per_dim`, or if the number of classes is unknown, labels are missing
        or not integers in [0, K), or a probability is NaN.
      TypeError: if `model` is neither a `FlowModel` nor a distribution.
    """
    caller = "classification"
    spec = scores.spec_of(model, caller, dequantize=dequantize, dequantizer=dequantizer, seed=seed)
    scores.check_no_weights(data, caller)
    if labels is not None:
        data = (parse(data).events, labels)
    num_samples = scores.checked_num_samples(caller, spec, num_samples)
    options: dict[str, Any] = {"num_samples": num_samples, "seed": spec.seed}
    options["jit_compile"] = getattr(model, "jit_compile", False)

    def classify(events: tf.Tensor, labels: Any = None) -> tuple[np.ndarray, np.ndarray]:
        log_prior = class_log_prior(spec.distribution, prior)
        log_joint = log_joint_of(spec.distribution, spec.noise, events, log_prior, **options)
        log_probs = tf.nn.log_softmax(log_joint)
        labels = np.full(len(events), -1) if labels is None else np.asarray(labels)
        return log_probs.numpy().astype(np.float64), labels

    log_probs, labels = scores.map_batches(classify, spec, caller, data, batch_size=batch_size)
    if np.isnan(log_probs).any():
        raise ValueError(f"{caller}: expected log densities, got NaN.")
    num_classes = log_probs.shape[1]
    labels = ConditionSpec(num_classes=num_classes).of_events(labels, caller)
    predicted = log_probs.argmax(axis=-1)
    is_correct = predicted == labels
    confusion = np.zeros([num_classes, num_classes], int)
    np.add.at(confusion, (labels, predicted), 1)
    return Classification(
        accuracy=float(is_correct.mean()),
        expected_calibration_error=calibration_error(np.exp(log_probs.max(axis=-1)), is_correct),
        log_loss=float(-log_probs[np.arange(len(labels)), labels].mean()),
        num_events=len(labels),
        confusion_matrix=tuple(map(tuple, confusion.tolist())),
    )


def _evaluated(
    caller: str, model: Any, spec: DataSpec, data: Any, unit: str, **options: Any
) -> Evaluation:
    scores.check_no_weights(data, caller)
    options["jit_compile"] = getattr(model, "jit_compile", False)
    log_prob, sizes = scores.sampled_log_probs(caller, spec, data, **options)
    log_prob = log_prob.astype(np.float64)
    index = int(np.argmin(np.isfinite(log_prob).all(axis=1)))
    expected = f"{caller}: expected finite log densities of event {index}"
    validation.require(bool(np.isfinite(log_prob[index]).all()), expected, log_prob[index])
    scale = -math.log(2) * sizes if unit == "bits/dim" else 1.0
    return Evaluation(
        *_mean_and_error(log_prob.mean(axis=1) / scale),
        *_mean_and_error(scores.log_mean_exp(log_prob) / scale),
        num_events=len(log_prob),
        num_samples=log_prob.shape[1],
        unit=unit,
    )


def _mean_and_error(values: np.ndarray) -> tuple[float, float]:
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def calibration_error(confidence: np.ndarray, is_correct: np.ndarray) -> float:
    """Returns the mean of |accuracy - confidence| over 15 bins, weighted by number of events.

    Bins of confidence are ((m - 1) / 15, m / 15]. `tfp.stats.expected_calibration_error` puts the
    lower ends into the bins instead, and takes float32 logits.
    """
    bins = np.digitize(confidence, np.arange(1, 15) / 15, right=True)
    return float(np.abs(np.bincount(bins, is_correct - confidence)).sum() / len(confidence))
