"""Classification by Bayes' rule."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
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
    route,
)
from tfp_realnvp.internal import validation

__all__ = ["class_log_joint", "class_log_prior", "class_log_probs"]

tfd = tfp.distributions


def class_log_probs(
    distribution: tfd.Distribution,
    x: tf.Tensor,
    prior: Any = None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    **options: Any,
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
      **options: `training`, as in `FlowBijector`.

    Returns:
      Log probabilities [..., K].

    Raises:
      ValueError: if the number of classes is unknown, or `prior` is not K probabilities; if x has
        an integer dtype without `num_samples`, or with it is not gray levels; or if `seed` does not
        fit into 32 bits.
      TypeError: if `distribution` is neither a distribution nor a `FlowModel`, or `seed` is not a
        number.
    """
    noise = {"num_samples": num_samples, "seed": seed}
    log_joint = class_log_joint(distribution, x, prior, **noise, **options)
    return tf.nn.log_softmax(log_joint, axis=-1)


def class_log_joint(
    distribution: tfd.Distribution,
    x: tf.Tensor,
    prior: Any = None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    **options: Any,
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
      **options: as in `class_log_probs`.

    Returns:
      Log densities [..., K].

    Raises:
      ValueError: as `class_log_probs`.
      TypeError: as `class_log_probs`.
    """
    dequantizer = getattr(distribution, "dequantizer", None)  # that of a `FlowModel`
    distribution = distribution_of(distribution, "class_log_probs")
    x = tf.convert_to_tensor(x)
    if num_samples is not None:
        add_noise = (dequantizer or pixels.UniformNoise(distribution.dtype)).add_noise
        return _mean_over_noise(
            lambda values: class_log_joint(distribution, values, prior, **options),
            *(distribution, x, add_noise, num_samples, seed),
        )
    if x.dtype.is_integer and distribution.event_shape.rank == 3:
        raise ValueError(
            f"class_log_probs: expected continuous pixel values, got {x.dtype.name}; "
            "`num_samples=1`, or more, adds noise to gray levels."
        )
    log_prior = class_log_prior(distribution, prior)
    num_classes = log_prior.shape[0]
    x = tf.cast(x, distribution.dtype)
    batch_ndims = x.shape.rank - distribution.event_shape.rank
    labels = tf.reshape(tf.range(num_classes), [num_classes] + [1] * batch_ndims)
    # One pass of the bijector is enough if only the base depends on the label.
    num_passes = num_classes if "bijector_kwargs" in route(distribution, conditional_input=0) else 1
    x = tf.broadcast_to(x, tf.concat([[num_passes], tf.shape(x)], axis=0))
    options = route(distribution, conditional_input=labels, **options)
    # [K, ...] to [..., K].
    log_probs = distribution.log_prob(x, **options)
    log_probs = tf.transpose(log_probs, [*range(1, batch_ndims + 1), 0])
    return log_probs + log_prior


def _mean_over_noise(
    log_joint_fn: Callable[[tf.Tensor], tf.Tensor],
    distribution: tfd.Distribution,
    levels: tf.Tensor,
    add_noise: Callable[..., tuple[tf.Tensor, Any]],
    num_samples: int,
    seed: int,
) -> tf.Tensor:
    """Returns the log of the mean over noise of p(x + u, y) / q(u | x), [..., K]."""
    expected = "class_log_probs: expected num_samples of at least 1, or None"
    num_samples = validation.integer(num_samples, 1, expected)
    seed = validation.int32(seed, "class_log_probs: expected an int32 seed")
    if tf.executing_eagerly():
        pixels.check_gray_levels(levels, "class_log_probs", find_num_values(distribution))
    event_ndims = distribution.event_shape.rank
    batch_shape = tf.shape(levels)[:-event_ndims]
    levels = tf.reshape(levels, tf.concat([[-1], tf.shape(levels)[-event_ndims:]], axis=0))

    @tf.autograph.experimental.do_not_convert
    def log_joint_of_draw(draw: tf.Tensor) -> tf.Tensor:
        noise_seed = pixels.evaluation_seed(seed, draw)
        noise_fn = functools.partial(pixels.event_noise, seed=noise_seed)
        values, log_noise = add_noise(levels, noise_fn)
        log_joint = log_joint_fn(values)
        return log_joint - tf.convert_to_tensor(log_noise, log_joint.dtype)[..., tf.newaxis]

    draws = tf.map_fn(
        log_joint_of_draw,
        tf.range(num_samples),
        fn_output_signature=distribution.dtype,
        parallel_iterations=1,
    )
    log_mean = tf.reduce_logsumexp(draws, axis=0) - math.log(num_samples)
    return tf.reshape(log_mean, tf.concat([batch_shape, tf.shape(log_mean)[1:]], axis=0))


def class_log_prior(distribution: tfd.Distribution, prior: Any = None) -> tf.Tensor:
    """Returns log p(y) of all classes, [K]; see `class_log_probs`."""
    spec, dtype = find_condition_spec(distribution), distribution.dtype
    num_classes = spec.num_classes if spec is not None else None
    if prior is None:
        if num_classes is None:
            raise ValueError(
                "class_log_probs: expected a distribution with num_classes, or a prior of the "
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
            f"class_log_probs: expected a prior of {num_classes} probabilities that sum to one, "
            f"got {prior}."
        )
    return tf.math.log(prior)
