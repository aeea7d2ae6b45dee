"""Trains a flow with a `ClassMixture` as base from few labels."""

import warnings
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp.distributions import class_log_probs, objective
from tfp_realnvp.distributions.data_spec import DataSpec
from tfp_realnvp.training.input_data import ArrayBatches
from tfp_realnvp.training.learning_rate import step_of

_MAX_LABELED = 1_000  # labeled events that are kept in memory
_MAX_SEARCHED = 100_000  # events of a dataset that are searched for labels
_DISTANCE = 6.0  # mean distance of two class means, in standard deviations of a component
_SHARE = 0.5  # share of the training in which the means move apart
_EQUAL_MEANS = ", or start with equal class means, `tf.Variable(tf.zeros([K, D]))`, which `fit` "
_EQUAL_MEANS += "places at the labeled events"


class ClassSeparation(keras.callbacks.Callback):
    r"""Moves the class means of a `ClassMixture` apart if all are equal at the start of `fit`.

    ```
    mean_k = (c_k - c) * (1 + (max(1, 6 σ / d) - 1) * min(1, 2 f))
    ```

    Here c_k is the mean latent of the labeled events of class k after the first step, c the mean of
    all c_k, d the mean distance between two c_k, σ the standard deviation of a component, and f the
    completed fraction of the training. From f = 1/2 on, `fit` trains the means.

    At first the components nearly coincide, and the flow learns the density of all events. As the
    components move apart, class boundaries settle in regions of low density. If the components
    started far apart, class boundaries could be anywhere between labeled events.
    """

    def __init__(self, spec: DataSpec, data: Any, budgets: list[Any]) -> None:
        """Collects about 1,000 labeled events from data passed to `fit`, balanced across classes.

        Searches arrays for labels, and the first 100,000 events of a `tf.data.Dataset`, but no
        other types of data. `budgets` are callbacks whose `fraction` is the completed part of the
        training. Raises `ValueError` if all class means are equal and no labels are found.
        """
        super().__init__()
        self._spec, self._budgets, self._epoch = spec, budgets, 0
        *self._bijectors, self._mixture = objective.parts_of(spec.distribution)
        loc = self._mixture.loc
        are_several = loc is not None and loc.shape[0] > 1
        self._is_separating = are_several and not np.ptp(loc.numpy(), axis=0).any()
        self._starts_equal, self._has_started = self._is_separating, False
        self._starting_errors = 0
        self._means: np.ndarray | None = None
        self._collect_labeled(data)
        if not self._is_separating:
            return
        if not self._labels.size:
            raise ValueError(
                "FlowModel.fit: expected labels in arrays or in the first "
                f"{_MAX_SEARCHED:,} events of a tf.data.Dataset, since all class means of the "
                "ClassMixture are equal. For other data, start with class means that differ."
            )
        missing = np.setdiff1d(np.arange(loc.shape[0]), self._labels).tolist()
        if missing:
            warnings.warn(
                f"FlowModel.fit: found no labeled events of the classes {missing}, whose means "
                "start at the center of the other class means.",
                stacklevel=3,
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Stores the number of the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets the class means for the next step."""
        # Wait for the first step, which initializes the normalizations of the flow.
        if not self._has_started:
            self._has_started, self._is_new = True, step_of(self.model) == 0
            return
        if self._is_new and not self._starts_equal:
            self._is_new, self._starting_errors = False, self._num_errors()
        if not self._is_separating:
            return
        if self._means is None:
            self._means, self._factor = self._first_means()
        steps = self.params["steps"]
        # If the number of steps is unknown, move the means once per epoch.
        fraction = (self._epoch + (batch / steps if steps else 1)) / self.params["epochs"]
        fraction = max([fraction, *(budget.fraction for budget in self._budgets)])
        self._is_separating = fraction < _SHARE
        factor = 1 + (self._factor - 1) * min(1.0, fraction / _SHARE)
        self._mixture.loc.assign(self._means * factor)

    def warn_of_errors(self) -> None:
        """Warns of labeled events that the flow misclassifies now or misclassified at the start."""
        errors = self._num_errors()
        if not (errors or self._starting_errors):
            return
        at_start = f" ({self._starting_errors} with the initial class means)"
        at_start *= self._starting_errors > 0
        equal = "" if self._starts_equal else _EQUAL_MEANS
        warnings.warn(
            f"FlowModel.fit: {errors} of {self._labels.size} labeled events are classified as "
            f"another class{at_start}; other events of their class probably are too. Train for "
            f"more epochs{equal}.",
            stacklevel=3,
        )

    def _num_errors(self) -> int:
        if not self._labels.size:
            return 0
        log_probs = class_log_probs(self._spec.distribution, self._events)
        return int(np.count_nonzero(np.argmax(log_probs, axis=-1) != self._labels))

    def _collect_labeled(self, data: Any) -> None:
        """Stores labeled events and their labels, about as many of each class."""
        if isinstance(data, ArrayBatches):
            batches = [data.arrays]
        else:
            batches = data if isinstance(data, tf.data.Dataset) else []
        num_classes = self._mixture.condition_spec.num_classes
        missing = np.full(num_classes, -(-_MAX_LABELED // num_classes))
        events, labels, num_searched = [], np.zeros([0], int), 0
        self._weights = np.zeros([0])
        for data_of_batch in batches:
            with tf.device("CPU"):  # arrays may be larger than the memory of a GPU
                batch, _ = self._spec.batch(data_of_batch)
            values, number = batch.events, len(batch.events)
            if batch.condition is not None:
                weights = np.ones(number) if batch.weights is None else batch.weights.numpy()
                # Ignore events of weight zero.
                of_batch = np.where(weights > 0, batch.condition, -1)
                chosen = [_spread(np.flatnonzero(of_batch == k), n) for k, n in enumerate(missing)]
                rows = np.concatenate(chosen)
                missing -= list(map(len, chosen))
                labels = np.append(labels, of_batch[rows])
                self._weights = np.append(self._weights, weights[rows])
                events.append(tf.gather(values, rows).numpy() + 0.5 * self._spec.dequantize)
            num_searched += number
            is_enough = not missing.any() if self._is_separating else len(labels) >= _MAX_LABELED
            if is_enough or num_searched >= _MAX_SEARCHED:
                break
        dtype = self._spec.distribution.dtype
        self._labels = labels
        self._events = np.concatenate(events).astype(dtype.as_numpy_dtype) if events else None

    def _first_means(self) -> tuple[np.ndarray, float]:
        """Returns the class means [K, ...] of the latents, and the factor that moves them apart."""
        latents = self._events
        for bijector in self._bijectors:
            latents = bijector.inverse(latents)
        latents, classes = np.asarray(latents), np.unique(self._labels)
        groups = [self._labels == label for label in classes]
        centers = np.stack([np.average(latents[g], 0, self._weights[g]) for g in groups])
        centers -= centers.mean(axis=0)
        means = np.zeros(self._mixture.loc.shape, centers.dtype)  # zeros for classes without labels
        means[classes] = centers
        flat = centers.reshape(len(classes), -1)
        pairs = [np.linalg.norm(flat[:k] - flat[k], axis=1) for k in range(1, len(classes))]
        distance = np.concatenate(pairs).mean() if pairs else 0
        scale = np.mean(self._mixture.components_distribution.stddev())
        return means, max(1.0, _DISTANCE * scale / distance) if distance > 0 else 1.0


def _spread(rows: np.ndarray, number: int) -> np.ndarray:
    """Returns at most `number` of the rows, evenly spaced."""
    return rows[:: max(1, len(rows) // max(1, number))][:number]
