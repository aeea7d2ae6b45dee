"""A mixture of flows for small tables."""

from __future__ import annotations

import math
from typing import Any

import keras
import linear_map
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.model_selection import KFold

import tfp_realnvp as tfr

__all__ = ["FlowCommittee"]

tfd = tfp.distributions

_ARCHITECTURE = {"num_couplings": 4, "num_blocks": 1, "num_filters": 32, "activation": "swish"}
_STEPS_PER_VALIDATION = 50


class FlowCommittee:
    r"""An equal mixture of flows, each of which holds out another fold of the rows to stop early.

    So all rows are learned from. Before the flow comes the affine map that gives the rows zero mean
    and unit covariance: a flow that starts as a rotation starts as a normal distribution with the
    covariance of the data. Against overfitting, the networks are small and smooth, the rows get
    normal noise anew in each step, and the base is a Student t distribution, so that a row far from
    all others is not impossible.

    The flows take turns in one `FlowModel`, which is traced once for all of them and for all calls
    of `fit`.

    #### References

    Lakshminarayanan, Pritzel, Blundell: Simple and scalable predictive uncertainty estimation using
    deep ensembles, section 2.4.
    """

    def __init__(
        self,
        num_columns: int,
        *,
        num_members: int = 5,
        noise: float = 0.3,
        max_steps: int = 2_000,
        patience: int = 10,
        learning_rate: float = 1e-3,
        batch_size: int = 64,
        degrees_of_freedom: float = 8.0,
        **architecture: Any,
    ) -> None:
        """Constructs the committee.

        Args:
          num_columns: D.
          num_members: number of flows.
          noise: standard deviation of the noise in training, where the rows have 1.
          max_steps: of the training of each flow.
          patience: number of validations without improvement after which training stops.
          learning_rate: of Adam.
          batch_size: of training, at most the number of rows.
          degrees_of_freedom: of the base distribution.
          **architecture: of `RealNVPVector`, instead of four couplings with networks of one block
            of 32 units.
        """
        self._num_members = num_members
        self._noise = noise
        self._max_steps = max_steps
        self._patience = patience
        self._batch_size = batch_size

        def new_model() -> tfr.FlowModel:
            base = tfd.Sample(tfd.StudentT(degrees_of_freedom, 0.0, 1.0), [num_columns])
            flow = tfr.RealNVPVector(num_columns, **{**_ARCHITECTURE, **architecture})
            return tfr.FlowModel(tfd.TransformedDistribution(base, flow))

        self._new_model = new_model
        self._model = new_model()
        self._model.compile(tfr.FusedAdam(learning_rate, global_clipnorm=10.0))
        self._model.build_optimizer()
        self._fresh_optimizer = [v.numpy() for v in self._model.optimizer.variables]
        self._members: list[tuple[linear_map.LinearMap, list[np.ndarray]]] = []

    def fit(self, rows: np.ndarray, seed: int = 0) -> FlowCommittee:
        """Trains all flows anew on rows [N, D]; returns the committee."""
        folds = KFold(self._num_members, shuffle=True, random_state=seed)
        self._members = []
        for i, (train, held_out) in enumerate(folds.split(rows)):
            keras.utils.set_random_seed(self._num_members * seed + i)
            whitening = linear_map.whitening(rows[train])
            self._train(*(whitening(rows[part]).astype(np.float32) for part in (train, held_out)))
            self._members.append((whitening, self._model.get_weights()))
        return self

    def log_prob(self, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of each row, float64 [N]."""
        log_probs = []
        for whitening, weights in self._members:
            self._model.set_weights(weights)
            latents = whitening(rows).astype(np.float32)
            log_prob = self._model.predict(latents, batch_size=1_000, verbose=0)
            log_probs.append(np.asarray(log_prob, np.float64) + whitening.log_det)
        return np.logaddexp.reduce(log_probs, axis=0) - math.log(len(log_probs))

    def _train(self, rows: np.ndarray, held_out: np.ndarray) -> None:
        model = self._model
        model.set_weights(self._new_model().get_weights())
        for variable, value in zip(model.optimizer.variables, self._fresh_optimizer, strict=True):
            variable.assign(value)
        batches = tf.data.Dataset.from_tensor_slices(rows).shuffle(len(rows)).repeat()
        batches = batches.batch(min(self._batch_size, len(rows)))
        noise = self._noise
        batches = batches.map(lambda x: x + noise * tf.random.normal(tf.shape(x)))
        model.fit(
            batches.prefetch(2),
            steps_per_epoch=_STEPS_PER_VALIDATION,
            epochs=math.ceil(self._max_steps / _STEPS_PER_VALIDATION),
            validation_data=held_out,
            validation_batch_size=1_000,
            callbacks=[
                keras.callbacks.EarlyStopping(patience=self._patience, restore_best_weights=True)
            ],
            verbose=0,
        )
