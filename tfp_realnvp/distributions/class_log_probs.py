"""Classification by Bayes' rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.distributions.class_mixture import ClassMixture
from tfp_realnvp.distributions.routing import distribution_of, find_condition_spec, route

__all__ = ["class_log_joint", "class_log_prior", "class_log_probs"]

tfd = tfp.distributions


def class_log_probs(
    distribution: tfd.Distribution, x: tf.Tensor, prior: Any = None, **options: Any
) -> tf.Tensor:
    r"""Returns log p(y | x) in nats for all classes y of a class-conditional distribution.

    ```
    log p(y | x) = log p(x | y) + log p(y) - log sum_y' p(x | y') p(y')
    ```

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
      x: events [..., H, W, C], continuous pixel values, of the distribution's dtype.
      prior: class probabilities p(y), [K]; by default those of a `ClassMixture`, else 1 / K.
        Required for a `ConditionalBase` without `num_classes`.
      **options: `training`, as in `FlowBijector`.

    Returns:
      Log probabilities [..., K].

    Raises:
      ValueError: if the number of classes is unknown, or `prior` is not K probabilities.
      TypeError: if `distribution` is neither a distribution nor a `FlowModel`.
    """
    return tf.nn.log_softmax(class_log_joint(distribution, x, prior, **options), axis=-1)


def class_log_joint(
    distribution: tfd.Distribution, x: tf.Tensor, prior: Any = None, **options: Any
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
      **options: as in `class_log_probs`.

    Returns:
      Log densities [..., K].

    Raises:
      ValueError: as `class_log_probs`.
      TypeError: as `class_log_probs`.
    """
    distribution = distribution_of(distribution, "class_log_probs")
    log_prior = class_log_prior(distribution, prior)
    num_classes = log_prior.shape[0]
    x = tf.convert_to_tensor(x, distribution.dtype)
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
