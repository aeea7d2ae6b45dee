"""Training of a `ClassMixture` with few labels."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.distributions import class_log_probs, routing
from tfp_realnvp.internal import batch_parts, private_api, replicas
from tfp_realnvp.training.input_data import events_and_weights

__all__ = ["LABEL_WEIGHT", "ClassSeparation", "mean_of_labeled", "parts_of"]

tfd = tfp.distributions

LABEL_WEIGHT = 0.1  # of the mean log p(y | x) of the labeled events in a batch
_MAX_EVENTS = 1_000  # labeled events that are kept in memory
_DISTANCE = 6.0  # mean distance of two class means, in standard deviations of a component
_SHARE = 0.5  # share of the training in which the means move apart


class ClassSeparation(keras.callbacks.Callback):
    r"""Moves the class means of a `ClassMixture` apart, if they are equal at the start of `fit`.

    ```
    mean_k = (c_k - c) * (1 + (max(1, 6 σ / d) - 1) * min(1, 2 f))
    ```

    Here c_k is the mean latent of the labeled events of class k after the first step, c the mean of
    all c_k, d the mean distance of two c_k, σ the standard deviation of a component, and f the
    fraction of the training that is done. From f = 1/2 on, the means are learned.

    At first the components nearly coincide, and the flow learns the density of all events. As they
    move apart, they divide the classes where events are rare. Components that start far apart can
    divide the classes anywhere between labeled events.
    """

    def __init__(
        self, distribution: tfd.Distribution, data: Any, dequantize: bool, budgets: list[Any]
    ) -> None:
        """Collects labeled events in one pass over the data.

        Args:
          distribution: a flow with a `ClassMixture` as base.
          data: the data of `fit`: a finite `tf.data.Dataset`, or Keras' adapter of arrays. Labels
            in other data are unknown before training.
          dequantize: whether events are gray levels.
          budgets: callbacks of `fit` that know the `fraction` of the training that is done.

        Raises:
          ValueError: if all class means are equal and no labels are known.
        """
        super().__init__()
        self._distribution, self._budgets, self._epoch = distribution, budgets, 0
        *self._bijectors, self._mixture = parts_of(distribution)
        self._collect_labeled(data, 0.5 if dequantize else 0.0)
        loc = self._mixture.loc
        are_several = loc is not None and loc.shape[0] > 1
        self._is_separating = are_several and not np.ptp(loc.numpy(), axis=0).any()
        self._has_started = False
        self._means: np.ndarray | None = None
        if self._is_separating and not self._labels.size:
            raise ValueError(
                "FlowModel.fit: expected labels in arrays or in a finite tf.data.Dataset, since "
                "all class means of the ClassMixture are equal. For other data, construct it with "
                "means that differ."
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the class means for the next step."""
        if not self._is_separating:
            return
        if not self._has_started:
            self._has_started = True  # The first step sets the normalizations of the flow.
            return
        if self._means is None:
            self._means, self._factor = self._first_means()
        steps = self.params["steps"]
        # Without a number of steps, the means move once an epoch.
        fraction = (self._epoch + (batch / steps if steps else 1)) / self.params["epochs"]
        fraction = max([fraction, *(budget.fraction for budget in self._budgets)])
        self._is_separating = fraction < _SHARE
        factor = 1 + (self._factor - 1) * min(1.0, fraction / _SHARE)
        self._mixture.loc.assign(self._means * factor)

    def warn_of_errors(self) -> None:
        """Warns of labeled events that the flow assigns to another class."""
        if not (self._has_unlabeled and self._labels.size):
            return
        log_probs = class_log_probs(self._distribution, self._events)
        num_errors = np.count_nonzero(np.argmax(log_probs, axis=-1) != self._labels)
        if num_errors:
            warnings.warn(
                f"FlowModel.fit: {num_errors} of {self._labels.size} labeled events are classified "
                "as another class, so that events without a label are likely to be. Train for more "
                "epochs, or start with equal class means, `tf.Variable(tf.zeros([K, D]))`.",
                UserWarning,
                stacklevel=3,
            )

    def _collect_labeled(self, data: Any, noise: float) -> None:
        """Stores the first labeled events and their labels."""
        if isinstance(data, private_api.ArrayDataAdapter):
            data = data.get_tf_dataset()
        is_dataset = isinstance(data, tf.data.Dataset)
        is_known = is_dataset and data.cardinality() != tf.data.INFINITE_CARDINALITY
        events, labels = [], []
        self._has_unlabeled = False
        for batch in data if is_known else []:
            condition = batch_parts.condition_in(batch)
            condition = routing.as_conditions(self._distribution, condition, "FlowModel.fit")
            if condition is None:
                continue
            # The log weight of a known class is 0.
            log_weights = self._mixture.log_weights(condition).numpy()
            is_labeled = log_weights.max(axis=-1) == 0
            values, _ = events_and_weights(batch, self._distribution)
            values = tf.cast(values, self._distribution.dtype).numpy() + noise
            events += list(values[is_labeled])
            labels += list(log_weights[is_labeled].argmax(axis=-1))
            self._has_unlabeled |= not is_labeled.all()
            if len(labels) >= _MAX_EVENTS:
                break
        self._events, self._labels = np.array(events), np.array(labels, int)

    def _first_means(self) -> tuple[np.ndarray, float]:
        """Returns the class means [K, ...] of the latents, and the factor by which they move."""
        from scipy.spatial.distance import pdist  # takes long to import

        latents = self._events
        for bijector in self._bijectors:
            latents = bijector.inverse(latents)
        latents, classes = np.asarray(latents), np.unique(self._labels)
        centers = np.stack([latents[self._labels == label].mean(axis=0) for label in classes])
        centers -= centers.mean(axis=0)
        means = np.zeros(self._mixture.loc.shape, centers.dtype)  # also of classes without labels
        means[classes] = centers
        distance = pdist(centers.reshape(len(classes), -1)).mean() if len(classes) > 1 else 0
        scale = np.mean(self._mixture.components_distribution.stddev())
        return means, max(1.0, _DISTANCE * scale / distance) if distance > 0 else 1.0


def mean_of_labeled(values: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor:
    """Returns this replica's summand of the mean over labeled events.

    The values [B] are log p(x | y) - log p(x), exactly 0 without a label.
    """
    weights = tf.ones_like(values) if weights is None else weights
    is_labeled = tf.cast(tf.not_equal(values, 0), values.dtype)
    [total] = replicas.sum_over_replicas([tf.reduce_sum(weights * is_labeled)])
    return tf.math.divide_no_nan(tf.reduce_sum(weights * values), total)


def parts_of(distribution: tfd.Distribution) -> list[Any]:
    """Returns the bijectors of a flow, in the order of the inverse, and its base."""
    if isinstance(distribution, private_api.TransformedDistribution):
        return [distribution.bijector, *parts_of(distribution.distribution)]
    return [distribution]
