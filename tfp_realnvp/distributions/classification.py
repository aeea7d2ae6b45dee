"""Classification by a class-conditional density: log p(y | x) by Bayes' rule."""

import math
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_realnvp import pixels
from tfp_realnvp.distributions import conditional_bases, routing, scorer
from tfp_realnvp.internal import batch_dims, validation


def class_log_probs(
    distribution: tfd.Distribution,
    x: tf.Tensor,
    prior: Any = None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    training: bool = False,
) -> tf.Tensor:
    r"""Returns log p(y | x), [..., K], in nats, for all classes y of a conditional distribution.

    ```
    log p(y | x) = log p(x | y) + log p(y) - log sum_y' p(x | y') p(y')
    ```

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> base = tfd.Sample(tfd.Normal(0., 1.), [4, 4, 1])
    >>> flow = tfd.TransformedDistribution(base, tfr.RealNVPImage((4, 4, 1), num_classes=3))
    >>> log_probs = tfr.class_log_probs(flow, tf.fill([5, 4, 4, 1], 99.5), prior=[0.5, 0.25, 0.25])
    >>> log_probs.shape, tf.exp(log_probs)[0].numpy().round(2).tolist()
    (TensorShape([5, 3]), [0.5, 0.25, 0.25])

    Args:
      distribution, x, prior, num_samples, seed, training: as in `class_log_joint`, which documents
        the errors.
    """
    options: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "training": training}
    return tf.nn.log_softmax(class_log_joint(distribution, x, prior, **options))


def class_log_joint(
    distribution: tfd.Distribution,
    x: tf.Tensor,
    prior: Any = None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    training: bool = False,
) -> tf.Tensor:
    r"""Returns log p(x, y) = log p(x | y) + log p(y), [..., K], in nats, for all classes y.

    The sum over classes is the unconditional density, `log p(x) = log sum_y p(x, y)`.

    If x contains gray levels, p(x | y) is the mean over `num_samples=n` samples of uniform noise,
    1/n sum_i p(x + u_i | y). More samples make the classifier more accurate. The networks
    evaluate all classes in one batch.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> base = tfd.Sample(tfd.Normal(0., 1.), [4, 4, 1])
    >>> flow = tfd.TransformedDistribution(base, tfr.RealNVPImage((4, 4, 1), num_classes=3))
    >>> log_joint = tfr.class_log_joint(flow, tf.fill([5, 4, 4, 1], 99.5))
    >>> log_joint.shape, tf.reduce_logsumexp(log_joint, axis=-1).shape
    (TensorShape([5, 3]), TensorShape([5]))

    Args:
      distribution: a flow with a bijector such as `RealNVPImage(..., num_classes=K)`, or with a
        `ClassMixture` or `ConditionalBase` as base; or a `FlowModel` of such a flow.
      x: [..., H, W, C] or [..., D]: continuous values, or gray levels, which are whole numbers of
        any dtype.
      prior: class probabilities p(y), [K]. Defaults to the weights of a `ClassMixture`, or 1 / K.
        Required if the flow does not declare the number of classes.
      num_samples: number of noise samples for gray levels. Defaults to 1 for gray levels, and to
        no noise for continuous values. Within a graph, floats are continuous by default.
      seed: seed of the noise, an int32.
      training: as in `FlowBijector`.

    Raises:
      ValueError: if the number of classes is unknown, `prior` is not K probabilities, or `seed` is
        not an int32. Also if images are gray levels divided by 255, or are no gray levels with
        `num_samples`.
      TypeError: if `distribution` is neither a distribution nor a `FlowModel`.
    """
    caller, model = "class_log_joint", distribution
    distribution = routing.distribution_of(model, caller)
    log_prior = class_log_prior(distribution, prior)
    routing.check_context(False, caller)
    x = tf.convert_to_tensor(x if tf.is_tensor(x) else np.asarray(x))
    event_ndims, num_values = distribution.event_shape.rank, routing.find_num_values(distribution)
    if num_samples is None and getattr(model, "dequantize", event_ndims == 3):
        # In a graph, only the dtype tells gray levels from continuous values.
        is_known = tf.executing_eagerly() and x.dtype.is_floating
        if not x.dtype.is_floating or (is_known and pixels.are_whole(x)):
            num_samples = 1
        elif is_known:
            pixels.check_continuous(x, caller, num_values)
    noise: Any = pixels.NoNoise(distribution.dtype)
    seed = validation.integer(seed, -(2**31), f"{caller}: expected an int32 seed", 2**31)
    if num_samples is not None:
        num_samples = validation.count(num_samples, "num_samples", 1, caller)
        # A `FlowModel` can have its own noise distribution, the dequantizer.
        noise = getattr(model, "dequantizer", None) or pixels.UniformNoise(distribution.dtype)
        if tf.executing_eagerly():
            pixels.check_gray_levels(x, caller, num_values)
    events = batch_dims.flatten_batch(tf.cast(x, distribution.dtype), event_ndims)
    options: dict[str, Any] = {"num_samples": num_samples or 1, "seed": seed, "training": training}
    options["jit_compile"] = getattr(model, "jit_compile", False)
    log_joint = log_joint_of(distribution, noise, events, log_prior, **options)
    return batch_dims.unflatten_batch(log_joint, x, event_ndims)


def log_joint_of(
    distribution: Any, noise: Any, events: tf.Tensor, log_prior: tf.Tensor, **options: Any
) -> tf.Tensor:
    """Returns `class_log_joint` of a batch of events, [B, K]; see `scores` for the arguments."""
    options["num_classes"] = log_prior.shape[0]
    by_sample = scorer.scores(distribution, noise, events, **options)
    return tf.reduce_logsumexp(by_sample, axis=0) - math.log(by_sample.shape[0]) + log_prior


def class_log_prior(distribution: tfd.Distribution, prior: Any = None) -> tf.Tensor:
    """Returns log p(y) of all classes, [K]; see `class_log_joint`."""
    spec, dtype = routing.find_condition_spec(distribution), distribution.dtype.as_numpy_dtype
    num_classes = None if spec is None else spec.num_classes
    if prior is None:
        expected = "expected a distribution with num_classes, or a prior of the classes"
        validation.require(num_classes is not None, expected, distribution)
        mixture = routing.find_part(distribution, conditional_bases.ClassMixture)
        if mixture is not None:
            return mixture.log_weights()
        prior = np.full(num_classes, 1 / num_classes)
    prior = np.asarray(prior, dtype)
    num_classes = num_classes or len(prior)
    is_valid = prior.shape == (num_classes,) and (prior >= 0).all() and abs(prior.sum() - 1) < 1e-3
    expected = f"expected a prior of {num_classes} probabilities that sum to one"
    validation.require(bool(is_valid), expected, prior)
    return tf.math.log(prior)
