"""A distribution as a Keras model: maximum likelihood with `fit`."""

from __future__ import annotations

import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import export, files, pixels, saving, tfp_types
from tfp_realnvp.bijectors import AffineCoupling, FlowBijector, parts
from tfp_realnvp.diagnosis import NonFiniteLossError, first_non_finite_part
from tfp_realnvp.networks import WeightNormConv2D
from tfp_realnvp.optimizers import FusedAdam

__all__ = ["FlowModel"]

tfd = tfp.distributions

_FIRST = tf.VariableAggregation.ONLY_FIRST_REPLICA


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class FlowModel(keras.Model):
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
          TypeError: if `distribution` is not a `tfd.Distribution`.
          ValueError: if its events are not images, or it has batch dimensions.
        """
        super().__init__(name=name)
        if not isinstance(distribution, tfd.Distribution):
            raise TypeError(f"FlowModel: expected a tfd.Distribution, got {distribution!r}.")
        if distribution.event_shape.rank not in (None, 3) or distribution.batch_shape.rank != 0:
            raise ValueError(
                "FlowModel: expected a distribution over images [height, width, channels] without "
                f"batch dimensions, got event_shape {distribution.event_shape} and batch_shape "
                f"{distribution.batch_shape}."
            )
        self.distribution = distribution
        self.dequantize = dequantize
        self.seed = seed
        bijectors = [part for part in distribution.submodules if isinstance(part, FlowBijector)]
        self._build_networks(bijectors)
        # Keras tracks layers and its own variables: the networks, and all else wrapped in one.
        self.networks = list(dict.fromkeys(layer for part in bijectors for layer in part.layers))
        self.other_variables = _TrackedVariables(
            [v for v in distribution.variables if not self._is_network_variable(v)],
            name="other_variables",
        )
        self._scales = self._find_scales(bijectors)
        self._set_in_training = tuple(v for p in bijectors for v in p.variables_set_in_training)
        self._bits_per_dim = keras.metrics.Mean(name="bits_per_dim")
        self._evaluation_batch = tf.Variable(0, trainable=False, dtype=tf.int64, aggregation=_FIRST)
        self._failed_step = tf.Variable(-1, trainable=False, dtype=tf.int64, aggregation=_FIRST)
        self._last_step = None
        self.scale_l2 = 0.0
        self.built = True

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer | None = None,
        *,
        scale_l2: float = 5e-5,
        **kwargs: Any,
    ) -> None:
        """Configures training; without arguments as the paper and its authors' code do.

        Args:
          optimizer: `None` is Adam with a learning rate of 1e-3 and gradients clipped to a global
            norm of 100.
          scale_l2: factor of the sum of squares of all scales, those of weight normalisation and
            those of tanh in the couplings.
          **kwargs: as in `keras.Model.compile`, but for `loss`.

        Raises:
          ValueError: if a `loss` is given.
        """
        if kwargs.pop("loss", None) is not None:
            raise ValueError("FlowModel.compile: expected no loss, it is the negative log density.")
        if optimizer is None:
            optimizer = FusedAdam(1e-3, global_clipnorm=100.0)
        super().compile(optimizer=optimizer, **kwargs)
        self.scale_l2 = scale_l2

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
        return {**config, "scale_l2": self.scale_l2} if config else config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles as `get_compile_config` of another model says."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

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
        if self.compiled and not self.optimizer.built:
            # As it will be after loading.
            self.optimizer.build(self.trainable_variables)
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

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """`loss` and `bits_per_dim`."""
        return [self._loss_tracker, self._bits_per_dim] if self.compiled else [self._bits_per_dim]

    def reset_metrics(self) -> None:
        """Resets the metrics, and the noise of evaluation, for each epoch and evaluation."""
        super().reset_metrics()
        self._evaluation_batch.assign(0)

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
        self._check_images(x)
        self._last_step = None
        if isinstance(x, tf.data.Dataset):
            # Keras would warn that it cannot do what it does by default.
            kwargs.setdefault("shuffle", False)
        history = super().fit(x, *args, **kwargs)
        self._raise_if_not_finite()
        if not history.history.get("loss"):
            raise ValueError("FlowModel.fit: expected images to train on, got an empty dataset.")
        return history

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as `keras.Model.evaluate` does; see `fit` for `x` and errors."""
        self._check_images(x)
        results = super().evaluate(x, *args, **kwargs)
        if not float(self._bits_per_dim.count):
            raise ValueError("FlowModel.evaluate: expected images, got an empty dataset.")
        return results

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Returns log p in nats for each image, [N]; see `fit` for `x` and errors."""
        self._check_images(x)
        self._evaluation_batch.assign(0)
        try:
            return super().predict(x, *args, **kwargs)
        except UnboundLocalError as error:
            # What Keras raises when there was no batch.
            if "batch_outputs" not in str(error):
                raise
            raise ValueError("FlowModel.predict: expected images, got an empty dataset.") from error

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """One step of maximum likelihood on a batch."""
        images = self._images(data)
        step = tf.cast(self.optimizer.iterations.value, tf.int64)
        values = self._values(images, (self.seed, tf.cast(step, tf.int32)))
        variables = self.trainable_variables
        # Tensors share the variables' buffers until those are written: this costs nothing.
        statistics = [(v, tf.identity(v)) for v in self._set_in_training]
        with tf.GradientTape() as tape:
            log_prob = self._log_prob(values, training=True)
            loss = -tf.reduce_mean(log_prob) + tf.cast(self._penalty(), log_prob.dtype)
            # Keras sums the gradients of replicas.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            scaled_loss = self.optimizer.scale_loss(loss / replicas)
        gradients = tape.gradient(scaled_loss, variables)
        # A step after one that failed, in the same execution, changes nothing either.
        failed_before = self._failed_step >= 0
        loss = tf.where(failed_before, tf.cast(float("nan"), loss.dtype), loss)
        is_finite = self._apply_if_finite(loss, gradients)
        fails = tf.logical_not(is_finite | failed_before)
        self._failed_step.assign(tf.where(fails, step, self._failed_step))
        for variable, value in statistics:
            variable.assign(tf.where(is_finite, variable, value))
        self._update_metrics(values, log_prob)
        # The wrapper in `make_train_function` takes these out again.
        last = {"_failed_step": tf.identity(self._failed_step)}
        if replicas == 1:
            last |= {"_fails": fails, "_images": images}
        return {**self.get_metrics_result(), **last}

    def _apply_if_finite(self, loss: tf.Tensor, gradients: list[tf.Tensor]) -> tf.Tensor:
        variables = self.trainable_variables
        if isinstance(self.optimizer, FusedAdam) and self.optimizer.applies_if_finite:
            return self.optimizer.apply_if_finite(loss, gradients, variables)
        is_finite = tf.math.is_finite(tf.linalg.global_norm([loss, *gradients]))
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            # Replicas merge within `apply`, which no branch may hold: a gradient of zero instead.
            replica = tf.distribute.get_replica_context()
            finite = replica.all_reduce(tf.distribute.ReduceOp.SUM, tf.cast(is_finite, tf.float32))
            is_finite = finite == float(replica.num_replicas_in_sync)
            mask = tf.cast(is_finite, tf.float32)
            gradients = [tf.math.multiply_no_nan(g, tf.cast(mask, g.dtype)) for g in gradients]
            self.optimizer.apply(gradients, variables)
            return is_finite

        def apply() -> tf.Tensor:
            self.optimizer.apply(gradients, variables)
            return tf.constant(True)

        return tf.cond(is_finite, apply, lambda: tf.constant(False))

    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Updates the metrics with a batch."""
        values = self._evaluation_values(data)
        self._update_metrics(values, self._log_prob(values))
        return self.get_metrics_result()

    def predict_step(self, data: Any) -> tf.Tensor:
        """Returns log p, [B], of a batch."""
        return self._log_prob(self._evaluation_values(data))

    def make_train_function(self, force: bool = False) -> Any:
        """Makes the function that `fit` calls, which looks whether the step before was finite."""
        if self.train_function is not None and not force:
            return self.train_function
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        super().make_train_function(force)
        train_function = self.train_function

        def checked(iterator: Any) -> dict[str, tf.Tensor]:
            # One step late: by now the value is there, and the device need not be waited for.
            self._raise_if_not_finite()
            logs = dict(train_function(iterator))
            self._last_step = {key: logs.pop(key) for key in list(logs) if key.startswith("_")}
            return logs

        self.train_function = checked
        return checked

    def _log_prob(self, values: tf.Tensor, training: bool = False) -> tf.Tensor:
        options = _log_prob_options(self.distribution, training=training)
        return self.distribution.log_prob(values, **options)

    def _penalty(self) -> tf.Tensor:
        squares = [tf.reduce_sum(tf.square(tf.cast(v, tf.float32))) for v in self._scales]
        return self.scale_l2 * tf.add_n(squares) if squares else tf.zeros([])

    def _update_metrics(self, values: tf.Tensor, log_prob: tf.Tensor) -> None:
        num_images = tf.shape(log_prob)[0]
        num_dims = tf.reduce_prod(tf.shape(values)[1:])
        self._loss_tracker.update_state(-tf.reduce_mean(log_prob), sample_weight=num_images)
        self._bits_per_dim.update_state(
            pixels.bits_per_dim(tf.reduce_mean(log_prob), num_dims), sample_weight=num_images
        )

    def _evaluation_values(self, data: Any) -> tf.Tensor:
        batch = self._evaluation_batch.assign_add(1)
        return self._values(self._images(data), pixels.evaluation_seed(self.seed, batch))

    def _values(self, images: tf.Tensor, seed: tuple[Any, Any]) -> tf.Tensor:
        if not self.dequantize:
            return tf.cast(images, self.distribution.dtype)
        return pixels.dequantize(images, tf.stack(seed), self.distribution.dtype)

    def _images(self, data: Any) -> tf.Tensor:
        images = tf.convert_to_tensor(pixels.image_component(data))
        expected = self.distribution.event_shape
        if images.shape.rank != 4 or not images.shape[1:].is_compatible_with(expected):
            raise ValueError(
                f"FlowModel: expected images [batch, {', '.join(map(str, expected))}], got shape "
                f"{images.shape}."
            )
        return images

    def _check_images(self, x: Any) -> None:
        if isinstance(x, tf.data.Dataset):
            if x.cardinality() == 0:
                raise ValueError("FlowModel: expected images, got an empty dataset.")
            return
        images = pixels.image_component(x)
        if not hasattr(images, "shape") or not hasattr(images, "dtype"):
            return
        if len(images.shape) != 4 or images.shape[0] == 0:
            raise ValueError(
                f"FlowModel: expected images [number, height, width, channels], at least one, got "
                f"shape {tuple(images.shape)}."
            )
        if self.dequantize and not tf.as_dtype(images.dtype).is_integer:
            largest = float(np.max(images))
            if largest <= 1.0 and float(np.max(np.asarray(images) % 1)) > 0:
                raise ValueError(
                    "FlowModel: expected grey levels 0, 1, 2, …, got fractions up to "
                    f"{largest}: multiply images in [0, 1] by 255 again, or pass dequantize=False."
                )

    def _raise_if_not_finite(self) -> None:
        last, self._last_step = self._last_step, None
        if last is None or int(last["_failed_step"]) < 0:
            return
        self._failed_step.assign(-1)
        step = int(last["_failed_step"])
        if not bool(last.get("_fails", False)):
            raise NonFiniteLossError(
                step, "a batch that is gone (one device and steps_per_execution=1 tell more)"
            )
        # The same noise and the same weights give the same failure, now step by step.
        values = self._values(last["_images"], (self.seed, step))
        state = [(v, tf.identity(v)) for v in self._set_in_training]
        part = first_non_finite_part(
            self.distribution,
            values,
            self.trainable_variables,
            **_log_prob_options(self.distribution, training=True),
        )
        for variable, value in state:
            variable.assign(value)
        raise NonFiniteLossError(step, part)

    def _build_networks(self, bijectors: list[FlowBijector]) -> None:
        if all(part.is_built for part in bijectors):
            return
        if not self.distribution.event_shape.is_fully_defined():
            raise ValueError(
                "FlowModel: expected built networks, or a distribution of known event_shape, got "
                f"{self.distribution.event_shape}."
            )
        image = tf.zeros([1, *self.distribution.event_shape], self.distribution.dtype)
        self.distribution.log_prob(image)

    def _is_network_variable(self, variable: tf.Variable) -> bool:
        return any(variable is own.value for layer in self.networks for own in layer.variables)

    def _find_scales(self, bijectors: list[FlowBijector]) -> list[Any]:
        layers = [each for network in self.networks for each in network._flatten_layers()]
        return [layer.scale for layer in layers if isinstance(layer, WeightNormConv2D)] + [
            part.scale
            for part in bijectors
            if isinstance(part, AffineCoupling) and part.scale is not None
        ]


class _TrackedVariables(keras.layers.Layer):
    """Makes `tf.Variable`s known to Keras, which looks for its own kind of variables only."""

    def __init__(self, variables: list[tf.Variable], name: str) -> None:
        super().__init__(name=name)
        self.wrapped = [
            keras.Variable(v, trainable=v.trainable, dtype=v.dtype.name, name=f"variable_{i}")
            for i, v in enumerate(variables)
        ]
        self.built = True


def _log_prob_options(distribution: tfd.Distribution, **options: Any) -> dict[str, Any]:
    """Returns the keyword arguments of `log_prob` that take `options` to the bijectors in it."""
    if isinstance(distribution, tfp_types.TransformedDistribution):
        routed = {
            "distribution_kwargs": _log_prob_options(distribution.distribution, **options),
            "bijector_kwargs": parts.call_options(distribution.bijector, **options),
        }
        return {name: kwargs for name, kwargs in routed.items() if kwargs}
    if isinstance(distribution, tfp_types.Independent):
        return _log_prob_options(distribution.distribution, **options)
    return {}
