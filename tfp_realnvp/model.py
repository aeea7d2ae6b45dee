"""A distribution as a Keras model: maximum likelihood with `fit`."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import checks, export, files, saving
from tfp_realnvp.image_input import check_images
from tfp_realnvp.likelihood import LikelihoodModel, ReplicatedMean
from tfp_realnvp.optimizers import FusedAdam

__all__ = ["FlowModel"]

tfd = tfp.distributions

_INT32 = range(-(2**31), 2**31)


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class FlowModel(LikelihoodModel):
    r"""Trains a distribution over images by maximum likelihood, as any Keras model is trained.

    ```
    loss = -mean log p(x) + scale_l2 * sum(scales²),   x = floor(images) + U[0, 1)
    ```

    Images are uint8 or floating grey levels, [B, H, W, C]; noise is added here, fresh at each step
    and set by `seed` and the step. `model.distribution` is the very object that was passed:
    training the model trains it, with a trainable base distribution. The metrics are `loss`, the
    mean negative log-likelihood in nats an image (without the penalty), and `bits_per_dim`.

    *   `fit`, `evaluate`, `predict` take NumPy arrays, tensors, and `tf.data` of images, of tuples
        whose first element they are (labels are ignored), or of dictionaries with `'image'`.
    *   `predict`, and `evaluate` in its metrics, give the log density of each image in nats, with
        moving statistics, and with the same noise each time.
    *   `model(x)` is `log_prob(x)` for continuous pixel values, without noise.
    *   In the scope of a `tf.distribute.MirroredStrategy` or `MultiWorkerMirroredStrategy`, made
        there with the distribution and the optimizer, it trains on several devices or machines as
        on one with the same batch; see `compile` for batch statistics.

    A loss or gradient that is not finite changes nothing: weights, statistics and optimizer stay
    as they were before that step, and `fit` raises a `NonFiniteLossError`.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [8, 8, 1]),
    ...     tfr.RealNVPImage((8, 8, 1), num_blocks=1, num_filters=8))
    >>> model = tfr.FlowModel(flow)
    >>> model.compile()
    >>> images = np.random.default_rng(0).integers(0, 256, [64, 8, 8, 1], dtype=np.uint8)
    >>> history = model.fit(images, batch_size=32, epochs=1, verbose=0)
    >>> sorted(history.history)
    ['bits_per_dim', 'loss']
    >>> model.predict(images, verbose=0).shape
    (64,)

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 4.1.
    Theis, van den Oord, Bethge: A note on the evaluation of generative models, section 3.1.
    """

    def __init__(
        self,
        distribution: tfd.Distribution,
        *,
        dequantize: bool = True,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        """Constructs the model.

        Args:
          distribution: over images [H, W, C], for example a `tfd.TransformedDistribution` with a
            `RealNVPImage`.
          dequantize: whether images are grey levels that need noise; `False` takes values as they
            are.
          seed: of the noise.
          name: of the model.

        Raises:
          TypeError: if `distribution` is not a `tfd.Distribution`, or `seed` no number.
          ValueError: if its events are not images, it has batch dimensions, or it was not made in
            the scope of the same `tf.distribute.Strategy` as this model.
        """
        if not isinstance(distribution, tfd.Distribution):
            raise TypeError(f"FlowModel: expected a tfd.Distribution, got {distribution!r}.")
        if distribution.event_shape.rank not in (None, 3) or distribution.batch_shape.rank != 0:
            raise ValueError(
                "FlowModel: expected a distribution over images [height, width, channels] without "
                f"batch dimensions, got event_shape {distribution.event_shape} and batch_shape "
                f"{distribution.batch_shape}."
            )
        checks.flag(dequantize, "FlowModel: expected a bool as dequantize")
        seed = int(checks.real(seed, lambda x: x in _INT32, "FlowModel: expected an int32 seed"))
        _check_scope("the distribution", distribution.variables)
        super().__init__(distribution, dequantize=dequantize, seed=seed, name=name)

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer | None = None,
        *,
        scale_l2: float = 5e-5,
        global_statistics: bool = True,
        **kwargs: Any,
    ) -> None:
        """Configures training; without arguments as the paper and its authors' code do.

        Args:
          optimizer: `None` is Adam with a learning rate of 1e-3 and gradients clipped to a global
            norm of 100.
          scale_l2: factor of the sum of squares of all scales, those of weight normalisation and
            those of tanh in the couplings.
          global_statistics: whether batch statistics are those of the batch of all replicas of a
            `tf.distribute.Strategy`, so that training is that of one device with the whole batch.
            With `False` each replica normalises by its part of the batch, without waiting for the
            others, and moving statistics are averaged after each step.
          **kwargs: as in `keras.Model.compile`, but for `loss`.

        Raises:
          ValueError: if a `loss` is given, `scale_l2` is negative, or the optimizer was not made in
            the scope of the model's `tf.distribute.Strategy`.
        """
        if kwargs.pop("loss", None) is not None:
            raise ValueError("FlowModel.compile: expected no loss, it is the negative log density.")
        expected = "FlowModel.compile: expected a scale_l2 of at least 0"
        checks.real(scale_l2, lambda x: 0 <= x < math.inf, expected)
        checks.flag(global_statistics, "FlowModel.compile: expected a bool as global_statistics")
        with self.distribute_strategy.scope():
            if optimizer is None:
                optimizer = FusedAdam(1e-3, global_clipnorm=100.0)
            super().compile(optimizer=optimizer, **kwargs)
            _check_scope("the optimizer", [v.value for v in self.optimizer.variables])
            self._loss_tracker = ReplicatedMean(name="loss")
        self.scale_l2 = scale_l2
        self.global_statistics = global_statistics

    def get_config(self) -> dict[str, Any]:
        """Returns what `from_config` needs, the distribution by its constructor arguments.

        Raises:
          TypeError: if a part of the distribution cannot be described; the message names it.
        """
        return {
            "name": self.name,
            "distribution": saving.serialize_distribution(self.distribution),
            "dequantize": self.dequantize,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> FlowModel:
        """Returns a model with new networks, as `get_config` of another one says.

        Args:
          config: of `get_config`.
          custom_objects: classes by name, as in `keras.Model.from_config`.
        """
        with keras.saving.custom_object_scope(custom_objects or {}):
            distribution = saving.deserialize_distribution(config["distribution"])
        return cls(**{**config, "distribution": distribution})

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the arguments of `compile`, serialised."""
        config = super().get_compile_config()
        own = {"scale_l2": self.scale_l2, "global_statistics": self.global_statistics}
        return {**config, **own} if config else config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as `get_compile_config` of another model says."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.build_optimizer()

    def save(
        self,
        filepath: str | os.PathLike[str],
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves architecture, weights and optimizer, as `keras.Model.save` does, or nothing.

        `keras.models.load_model(filepath)` gives the model back, ready for the next training step,
        in any process that has imported `tfp_realnvp`. The file is written beside `filepath` and
        takes its place when it is whole, so that a save that is killed leaves the old one.

        Args:
          filepath: `*.keras`.
          overwrite: whether an existing file may be replaced.
          zipped: `False` makes a folder.
          **kwargs: as in `keras.Model.save`.

        Raises:
          FileExistsError: if the file exists and not `overwrite`.
          TypeError: if a part of the distribution cannot be described; the message names it.
        """
        if "://" in os.fspath(filepath):
            # Not a file system's: what is atomic there, Keras and the service know.
            return super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
        if os.path.exists(filepath) and not overwrite:
            raise FileExistsError(f"FlowModel.save: {os.fspath(filepath)!r} exists.")
        if self.compiled:
            # As it will be after loading.
            self.build_optimizer()
        with files.replaced_whole(filepath) as whole:
            super().save(whole, zipped=zipped, **kwargs)

    def export(self, filepath: str | os.PathLike[str], **kwargs: Any) -> None:
        """Writes a SavedModel for serving; see `export_saved_model`.

        Args:
          filepath: the folder.
          **kwargs: as in `export_saved_model`.
        """
        export.export_saved_model(self.distribution, filepath, **kwargs)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Returns log p, [B], in nats, for continuous pixel values [B, H, W, C]."""
        return self._log_prob(tf.cast(images, self.distribution.dtype), training=training)

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does.

        Args:
          x: images.
          *args: as in `keras.Model.fit`.
          **kwargs: as in `keras.Model.fit`.

        Raises:
          ValueError: if there are no images, or they are not [B, H, W, C] with grey levels.
          NonFiniteLossError: if the loss or its gradient is not finite.
        """
        check_images(x, grey_levels=self.dequantize)
        self._last_step = None
        if isinstance(x, (tf.data.Dataset, tf.distribute.DistributedDataset)):
            # Keras would warn that it cannot do what it does by default.
            kwargs.setdefault("shuffle", False)
        history = super().fit(x, *args, **kwargs)
        self._raise_if_not_finite()
        if not history.history.get("loss"):
            raise ValueError("FlowModel.fit: expected images to train on, got an empty dataset.")
        return history

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as `keras.Model.evaluate` does; see `fit` for `x` and errors.

        Warns with a `RuntimeWarning` of a loss that is not finite.
        """
        check_images(x, grey_levels=self.dequantize)
        results = super().evaluate(x, *args, **kwargs)
        if not self._bits_per_dim.count.numpy():
            raise ValueError("FlowModel.evaluate: expected images, got an empty dataset.")
        _warn_unless_finite(self._bits_per_dim.result().numpy(), "evaluate")
        return results

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Returns log p in nats for each image, [N]; see `fit` for `x` and errors.

        Warns with a `RuntimeWarning` of those that are not finite.
        """
        check_images(x, grey_levels=self.dequantize)
        self._evaluation_batch.assign(0)
        try:
            log_prob = super().predict(x, *args, **kwargs)
        except UnboundLocalError as error:
            # What Keras raises when there was no batch.
            if "batch_outputs" not in str(error):
                raise
            raise ValueError("FlowModel.predict: expected images, got an empty dataset.") from error
        _warn_unless_finite(log_prob, "predict")
        return log_prob


def _warn_unless_finite(values: Any, method: str) -> None:
    # No error: a validation within `fit` may pass, and of many images the others have a density.
    number = np.count_nonzero(~np.isfinite(values))
    if number:
        warnings.warn(
            f"FlowModel.{method}: expected finite log densities, got {number} of {np.size(values)} "
            "that are not; a bijector with validate_args=True says where, and "
            "evaluation.bits_per_dim for which image.",
            RuntimeWarning,
            stacklevel=3,
        )


def _check_scope(name: str, variables: Sequence[tf.Variable]) -> None:
    strategy = tf.distribute.get_strategy()
    if not all(strategy.extended.variable_created_in_scope(variable) for variable in variables):
        raise ValueError(
            f"FlowModel: expected {name} of the scope that the model is in, of "
            f"{type(strategy).__name__}, got variables of another: construct distribution, model "
            "and optimizer in one `with strategy.scope()`."
        )
