"""A mixture with a component for each class, for events of which few have a label."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal import private_api

__all__ = ["ClassMixture"]

tfd = tfp.distributions


class ClassMixture(tfd.MixtureSameFamily):
    r"""A `tfd.MixtureSameFamily` whose components are classes, and may be known.

    ```
    log p(z | y),                       for a label y in [0, K)
    log p(z) = log sum_y p(y) p(z | y)  for a label of -1, or without one
    ```

    `conditional_input` has the labels. As the base of a flow it makes a classifier of few labels:
    `FlowModel.fit(x, labels)` maximizes `log p(x | y)` of the rows with a label, `log p(x)` of the
    rows whose label is -1, and in addition 0.1 times the mean `log p(y | x)` of the labeled rows of
    each batch. The bijector does not depend on the class. `class_log_probs` is `log p(y | x)`;
    `flow.log_prob(x)` is `log p(x)`.

    Construct it with equal means, a `tf.Variable` of zeros [K, ...]. `fit` then places the means at
    the mean latents of the labeled rows, and in the first half of the training moves them apart, to
    a mean distance of at least 6 standard deviations. The classes divide where rows are rare. `fit`
    keeps means that differ, and trains them from there; the result then depends on them.

    #### Example

    >>> import numpy as np, tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> means = tf.Variable(tf.zeros([2, 2]))   # placed by `fit`
    >>> base = tfr.ClassMixture(
    ...     tfd.Categorical(logits=tf.zeros(2)), tfd.Independent(tfd.Normal(means, 1.), 1))
    >>> flow = tfd.TransformedDistribution(
    ...     base, tfr.RealNVPVector(2, num_couplings=2, num_filters=8))
    >>> model = tfr.FlowModel(flow)
    >>> model.compile()
    >>> x = np.random.default_rng(0).normal([[-1., 0.]] * 50 + [[1., 0.]] * 50, 0.2)
    >>> labels = np.full(100, -1)   # unknown
    >>> labels[[0, 99]] = 0, 1
    >>> history = model.fit(x, labels, verbose=0)
    >>> tfr.class_log_probs(flow, x).shape, tfr.condition(flow, 1).sample(5).shape
    (TensorShape([100, 2]), TensorShape([5, 2]))

    The constructor is that of `tfd.MixtureSameFamily`: `mixture_distribution` is p(y), a
    `tfd.Categorical`; `components_distribution` is p(z | y), of batch shape [K]. Parameters that
    are a `tf.Variable` are trained. Samples are not reparameterized.

    #### References

    Rose: Deterministic annealing for clustering, compression, classification, regression, and
    related optimization problems (1998).
    Izmailov, Kirichenko, Finzi, Wilson: Semi-supervised learning with normalizing flows (2020).
    """

    @property
    def condition_spec(self) -> ConditionSpec:
        """The declaration of the labels, which may be missing.

        Raises:
          ValueError: if the batch shape of the components is not [K].
        """
        shape = self.components_distribution.batch_shape
        if shape.rank != 1 or shape[0] is None:
            raise ValueError(
                "ClassMixture: expected a components_distribution of batch_shape [number of "
                f"classes], got {self.components_distribution}."
            )
        return ConditionSpec(num_classes=shape[0], dropout=0.0)

    @property
    def loc(self) -> tf.Variable | None:
        """The component means [K, ...] if they are a trainable `tf.Variable`, else `None`."""
        part = components = self.components_distribution
        while isinstance(part, private_api.Independent):
            part = part.distribution
        loc = part.parameters.get("loc")
        is_trained = isinstance(loc, tf.Variable) and loc.trainable
        has_mean_of_each = (
            is_trained and loc.shape == components.batch_shape + components.event_shape
        )
        return loc if has_mean_of_each else None

    def log_weights(self, conditional_input: Any = None) -> tf.Tensor:
        """Returns the log weights of the classes, [..., K], given their labels [...].

        Raises:
          ValueError: if a label is not in [0, K) or -1.
        """
        spec = self.condition_spec
        condition = spec.as_tensor(conditional_input, "ClassMixture", self.dtype)
        prior = tf.math.log_softmax(self.mixture_distribution.logits_parameter())
        log_weights = tf.math.log(tf.one_hot(condition, spec.num_classes, dtype=self.dtype))
        return tf.where(condition[..., tf.newaxis] < 0, prior, log_weights)

    def _log_prob(self, x: tf.Tensor, conditional_input: Any = None) -> tf.Tensor:
        x = tf.expand_dims(x, -1 - self.event_shape.rank)
        log_probs = self.components_distribution.log_prob(x)
        return tf.reduce_logsumexp(log_probs + self.log_weights(conditional_input), axis=-1)

    def _call_sample_n(self, sample_shape: Any, seed: Any, conditional_input: Any = None) -> Any:
        # The last dimensions of the sample are the batch of the condition.
        seed, label_seed = tfp.random.split_seed(seed, salt="ClassMixture")
        log_weights = self.log_weights(conditional_input)
        shape = tf.reshape(tf.convert_to_tensor(sample_shape, tf.int32), [-1])
        shape = tf.broadcast_dynamic_shape(shape, tf.shape(log_weights)[:-1])
        log_weights = tf.broadcast_to(
            log_weights, tf.concat([shape, tf.shape(log_weights)[-1:]], 0)
        )
        labels = tfd.Categorical(logits=log_weights).sample(seed=label_seed)
        x = self.components_distribution.sample(shape, seed=seed)
        return tf.gather(x, labels, axis=labels.shape.rank, batch_dims=labels.shape.rank)
