"""Log densities of events at several noise samples."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Hashable
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp import pixels
from tfp_realnvp.distributions import VariationalDequantization, distribution_of
from tfp_realnvp.internal import validation
from tfp_realnvp.training.flow_model import FlowModel

__all__ = ["NoiseSamples", "check_no_weights", "log_mean_exp"]

Model = TypeVar("Model", bound="NoiseSamples")

# What `NoiseSamples.of` returned for each `FlowModel`, by its arguments.
_known: weakref.WeakKeyDictionary[Any, dict[Hashable, Any]] = weakref.WeakKeyDictionary()


class NoiseSamples(FlowModel):
    r"""A model whose `predict_samples` has `log p(x + u_k) - log q(u_k | x)`, [N, K].

    The noise samples u_1 … u_K of an event are determined by the seed and its gray levels. The
    first one is that of `FlowModel.predict`.
    """

    num_samples = 1

    @classmethod
    def of(
        cls: type[Model],
        model: Any,
        caller: str,
        num_samples: int = 1,
        *,
        dequantize: bool | None = None,
        dequantizer: VariationalDequantization | None = None,
        seed: int | None = None,
    ) -> Model:
        """Returns the model of a `FlowModel`, or of a distribution.

        For a `FlowModel` and equal arguments it returns the same model each time, which has traced
        its step. Models of subclasses have attributes of their own, and are new.

        Args:
          model: a `FlowModel` or a distribution.
          caller: name that begins error messages.
          num_samples: number of noise samples K; 1 without noise.
          dequantize: as in `FlowModel`; by default that of `model`.
          dequantizer: as in `FlowModel`; by default that of `model`.
          seed: as in `FlowModel`; by default that of `model`.

        Raises:
          TypeError: if `model` is neither, or `dequantize` is not a bool.
          ValueError: if `num_samples` is not positive, or values get no noise and there are several
            samples or a `dequantizer`; or as in `FlowModel`.
        """
        distribution = distribution_of(model, caller)
        expected = f"{caller}: expected a number of noise samples of at least 1"
        num_samples = validation.integer(num_samples, 1, expected)
        strategy = tf.distribute.get_strategy()
        if isinstance(model, keras.Model):
            strategy = model.distribute_strategy
            dequantize = model.dequantize if dequantize is None else dequantize
            dequantizer = model.dequantizer if dequantizer is None and dequantize else dequantizer
            seed = model.seed if seed is None else seed
        if dequantize is None and dequantizer is not None:
            dequantize = True
        if dequantize is not None:
            dequantize = validation.flag(dequantize, f"{caller}: expected a bool as dequantize")
        if dequantize is False and dequantizer is not None:
            raise ValueError(f"{caller}: expected no dequantizer with dequantize=False.")
        seed = validation.int32(0 if seed is None else seed, f"{caller}: expected an int32 seed")
        is_kept = isinstance(model, FlowModel) and cls is NoiseSamples
        known = _known.setdefault(model, {}) if is_kept else {}
        # The kept model refers to both objects, so that no other one can get their `id`.
        key = (id(distribution), id(dequantizer), num_samples, dequantize, seed)
        if key in known:
            return known[key]
        with strategy.scope():
            samples = cls(distribution, dequantize=dequantize, dequantizer=dequantizer, seed=seed)
        if num_samples > 1 and not samples.dequantize:
            raise ValueError(
                f"{caller}: expected one noise sample for values without noise, got {num_samples}; "
                "dequantize=True adds noise."
            )
        samples.num_samples = num_samples
        known[key] = samples
        return samples

    def predict_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Returns `log_prob`, [B, K, ...], and `num_dims`, the elements of each event, [B]."""
        images, weights = self._events_and_weights(data)
        self._check_in_evaluation(images, weights)
        log_prob_fn = functools.partial(self._evaluation_log_prob, data)
        if self.num_samples == 1:
            log_prob = log_prob_fn()[:, tf.newaxis]
        else:
            samples = tf.map_fn(
                tf.autograph.experimental.do_not_convert(log_prob_fn),
                tf.range(self.num_samples),
                fn_output_signature=self.distribution.dtype,
                parallel_iterations=1,
            )
            log_prob = tf.transpose(samples, [1, 0, *range(2, samples.shape.rank)])
        shape = tf.shape(images)
        return {"log_prob": log_prob, "num_dims": tf.fill(shape[:1], tf.reduce_prod(shape[1:]))}

    def predict_samples(self, data: Any, **kwargs: Any) -> dict[str, np.ndarray]:
        """Returns what `predict_step` returns, of all events; takes what `predict` takes."""
        with warnings.catch_warnings():
            # Keras warns of the end of a dataset whose length it does not know.
            warnings.filterwarnings("ignore", message="Your input ran out of data")
            return self.predict_events(data, **{"verbose": 0, **kwargs})


def check_no_weights(data: Any, caller: str) -> None:
    """Raises `ValueError` if data have weights, which the means of an evaluation do not use.

    Args:
      data: in any form that `FlowModel.predict` takes. The batches of a generator are not seen.
      caller: name that begins the error message.
    """
    structure = data.element_spec if isinstance(data, tf.data.Dataset) else data
    if pixels.weight_component(structure) is not None:
        raise ValueError(
            f"{caller}: expected events without sample weights; `FlowModel.evaluate` takes them."
        )


def log_mean_exp(log_prob: np.ndarray) -> np.ndarray:
    """Returns the log of the mean over noise samples of densities [N, K, ...], float64."""
    log_prob = np.asarray(log_prob, np.float64)
    return np.logaddexp.reduce(log_prob, axis=1) - np.log(log_prob.shape[1])
