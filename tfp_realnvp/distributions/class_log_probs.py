"""Classification by Bayes' rule."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import pixels
from tfp_realnvp.distributions.class_mixture import ClassMixture
from tfp_realnvp.distributions.routing import (
    distribution_of,
    find_condition_spec,
    find_num_values,
)
from tfp_realnvp.distributions.scorer import scores
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.batch_dims import flatten_batch, unflatten_batch

__all__ = ["class_log_joint", "class_log_prior", "class_log_probs"]

tfd = tfp.distributions


def class_log_probs(
    distribution: tfd.Distribution,
    x: tf.Tensor,
    prior: Any = None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    training: bool = False,
) -> tf.Tensor:
    r"""Returns log p(y | x) in nats for all classes y of a class-conditional distribution.

    ```
    log p(y | x) = log p(x | y) + log p(y) - log sum_y' p(x | y') p(y')
    ```

    With `num_samples=K`, x are gray levels, and the mean over K samples of uniform noise,
    1/K sum_k p(x + u_k | y), takes the place of p(x | y). The noise is determined by the seed and
    the gray levels. More samples make a better classifier.

    All classes are evaluated in one call, as a batch that is `num_classes` times as large, or of
    the same size if only the base distribution depends on the label.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> base = tfd.Sample(tfd.Normal(0., 1.), [4, 4, 1])
    >>> flow = tfd.TransformedDistribution(base, tfr.RealNVPImage((4, 4, 1), num_classes=3))
    >>> log_probs = tfr.class_log_probs(flow, tf.fill([5, 4, 4, 1], 99.5), prior=[0.5, 0.25, 0.25])
    >>> log_probs.shape, tf.exp(log_probs)[0].numpy().round(2).tolist()
    (TensorShape([5, 3]), [0.5, 0.25, 0.25])

    Args:
      distribution: a flow with a `RealNVPImage(..., num_classes=K)`, or a flow with a
        `ClassMixture` or a `ConditionalBase` as base; or the `FlowModel` of one.
      x: events [..., H, W, C], continuous pixel values, of the distribution's dtype; or with
        `num_samples` gray levels, of any dtype.
      prior: class probabilities p(y), [K]; by default those of a `ClassMixture`, else 1 / K.
        Required for a `ConditionalBase` without `num_classes`.
      num_samples: number of noise samples for gray levels; `None` takes values as they are.
      seed: of the noise, an integer.
      training: as in `FlowBijector`.

    Returns:
      Log probabilities [..., K].

    Raises:
      ValueError: if the number of classes is unknown, or `prior` is not K probabilities; if x has
        an integer dtype without `num_samples`, or with it is not gray levels; or if `seed` does not
        fit into 32 bits.
      TypeError: if `distribution` is neither a distribution nor a `FlowModel`, or `seed` is not a
        number.
    """
    arguments = distribution, x, prior, num_samples, seed, training
    log_joint = _log_joint("class_log_probs", *arguments)
    return tf.nn.log_softmax(log_joint, axis=-1)


def class_log_joint(
    distribution: tfd.Distribution,
    x: tf.Tensor,
    prior: Any = None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    training: bool = False,
) -> tf.Tensor:
    r"""Returns log p(x, y) = log p(x | y) + log p(y) in nats for all classes y.

    Summed over the classes it is the density without a label, `log p(x) = log sum_y p(x, y)`.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> base = tfd.Sample(tfd.Normal(0., 1.), [4, 4, 1])
    >>> flow = tfd.TransformedDistribution(base, tfr.RealNVPImage((4, 4, 1), num_classes=3))
    >>> log_joint = tfr.class_log_joint(flow, tf.fill([5, 4, 4, 1], 99.5))
    >>> log_joint.shape, tf.reduce_logsumexp(log_joint, axis=-1).shape
    (TensorShape([5, 3]), TensorShape([5]))

    Args:
      distribution: as in `class_log_probs`.
      x: as in `class_log_probs`.
      prior: as in `class_log_probs`.
      num_samples: as in `class_log_probs`.
      seed: as in `class_log_probs`.
      training: as in `FlowBijector`.

    Returns:
      Log densities [..., K].

    Raises:
      ValueError: as `class_log_probs`.
      TypeError: as `class_log_probs`.
    """
    arguments = distribution, x, prior, num_samples, seed, training
    return _log_joint("class_log_joint", *arguments)


def _log_joint(
    caller: str,
    model: Any,
    x: Any,
    prior: Any,
    num_samples: int | None,
    seed: int,
    training: bool,
) -> tf.Tensor:
    """Returns log p(x, y), [..., K]; see `class_log_joint`. Errors begin with `caller`."""
    distribution = distribution_of(model, caller)
    log_prior = class_log_prior(distribution, prior, caller)
    x = tf.convert_to_tensor(x if tf.is_tensor(x) else np.asarray(x))
    event_ndims = distribution.event_shape.rank
    noise: Any = pixels.NoNoise(distribution.dtype)
    if num_samples is not None:
        num_samples = validation.count(num_samples, "num_samples", 1, caller)
        seed = validation.int32(seed, f"{caller}: expected an int32 seed")
        # The noise of a `FlowModel`.
        noise = getattr(model, "dequantizer", None) or pixels.UniformNoise(distribution.dtype)
        if tf.executing_eagerly():
            pixels.check_gray_levels(x, caller, find_num_values(distribution))
    elif x.dtype.is_integer and event_ndims == 3:
        raise ValueError(
            f"{caller}: expected continuous pixel values, got {x.dtype.name}; "
            "`num_samples=1`, or more, adds noise to gray levels."
        )
    events = flatten_batch(tf.cast(x, distribution.dtype), event_ndims)
    options: dict[str, Any] = {"num_samples": num_samples or 1, "seed": seed, "training": training}
    by_sample = scores(distribution, noise, events, num_classes=log_prior.shape[0], **options)
    log_probs = tf.reduce_logsumexp(by_sample, axis=0) - math.log(len(by_sample))
    return unflatten_batch(log_probs, x, event_ndims) + log_prior


def class_log_prior(
    distribution: tfd.Distribution, prior: Any = None, caller: str = "class_log_prior"
) -> tf.Tensor:
    """Returns log p(y) of all classes, [K]; see `class_log_probs`."""
    spec, dtype = find_condition_spec(distribution), distribution.dtype
    num_classes = spec.num_classes if spec is not None else None
    if prior is None:
        if num_classes is None:
            raise ValueError(
                f"{caller}: expected a distribution with num_classes, or a prior of the "
                f"classes, got {distribution}."
            )
        for part in (distribution, *distribution.submodules):
            if isinstance(part, ClassMixture):
                return part.log_weights()
        return tf.fill([num_classes], tf.cast(-np.log(num_classes), dtype))
    prior = np.asarray(prior, dtype.as_numpy_dtype)
    num_classes = num_classes or len(prior)
    is_distribution = prior.shape == (num_classes,) and (prior >= 0).all()
    if not (is_distribution and abs(prior.sum() - 1) < 1e-3):
        raise ValueError(
            f"{caller}: expected a prior of {num_classes} probabilities that sum to one, "
            f"got {prior}."
        )
    return tf.math.log(prior)
