"""Trains a distribution as a Keras model, by maximum likelihood."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_realnvp import pixels
from tfp_realnvp.bijectors import FlowBijector
from tfp_realnvp.distributions import ClassMixture, ClusterMixture, routing, sampler
from tfp_realnvp.distributions.variational_dequantization import VariationalDequantization
from tfp_realnvp.internal import private_api, replicas, validation
from tfp_realnvp.training import execution, model_variables
from tfp_realnvp.training.diagnosis import FiniteGuard, warn_unless_finite
from tfp_realnvp.training.few_labels import ClassSeparation, parts_of
from tfp_realnvp.training.fused_adam import FusedAdam
from tfp_realnvp.training.input_data import arguments_for_keras, check_distribution, checked_batch
from tfp_realnvp.training.learning_rate import CosineAnnealing, LearningRateBudget, RateFactors
from tfp_realnvp.training.muon import Muon
from tfp_realnvp.training.steps import FlowSteps, with_scheduled_rate

# Default learning rates, by the rank of an event.
_PEAKS = {1: 1e-3, 3: 4e-3}


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class FlowModel(FlowSteps):
    r"""A Keras model that trains a distribution over images or vectors by maximum likelihood.

    ```
    loss = -sum_i w_i log p(x_i) / sum_i w_i + scale_l2 * sum(scales²) + sum(model.losses)
    x = floor(images) + U[0, 1)
    ```

    The index i runs over the events of the batch, whose weights w_i are 1 by default.

    Images are uint8 or floating gray levels, [B, H, W, C]. Each training step adds new noise to
    images, determined by `seed` and the step number. Vectors [B, D] get no noise and have no
    bits/dim. Training changes the distribution object that you passed, including a trainable base.
    `model.losses` are the losses that networks add with `add_loss` or weight regularizers. The
    metrics are `loss`, the weighted mean of -log p in nats per event without the other terms, and
    `bits_per_dim`, the same mean in bits/dim.

    *   `fit`, `evaluate` and `predict` accept the same data as any `keras.Model`: arrays, tensors,
        pandas frames, `tf.data`, `keras.utils.PyDataset`, generators. A batch is images, a tuple
        that begins with images, or a dictionary with `'image'`; a generator yields tuples,
        `(images,)` without labels. `FlowModel` casts floats to the distribution's dtype.
    *   A distribution that takes a condition gets the second element of a tuple as
        `conditional_input`, or the element `'conditional_input'` or `'label'` of a dictionary:
        `fit(images, labels)`, `predict((images, labels))`. For other distributions, passing labels
        raises an error; labels in a dataset are ignored with a warning. With a `ClassMixture` as
        base, -1 is an unknown label. If the flow has `condition_dropout=p`, each step drops the
        condition of an image with probability p.
    *   `fit` and `evaluate` take `sample_weight`, the third element of a tuple, or the element
        `'sample_weight'` of a dictionary; `fit` also takes `class_weight`. In loss, metrics and
        batch statistics, an event of weight two counts as two equal events, and an event of weight
        zero is ignored.
    *   `predict` and `evaluate` use moving statistics. The evaluation noise on an image depends
        only on `seed` and on the image's gray levels.
    *   `model(x)`, or `model((x, c))`, is `log_prob` of continuous pixel values, without noise.
    *   To train on several devices or machines, construct the distribution, the model and the
        optimizer in the scope of a `tf.distribute.MirroredStrategy` or
        `MultiWorkerMirroredStrategy`. Several devices give the same results as one device with the
        same batch; see `compile` for batch statistics.

    If the optimizer has `use_ema=True`, `fit` validates with the averaged weights, and the model
    keeps them after `fit`, as in Keras. Moving statistics of batch normalization are not averaged.

    If a loss or gradient is not finite, weights, statistics and optimizer keep their values from
    before that step, and `fit` raises a `NonFiniteLossError`.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [8, 8, 1]),
    ...     tfr.RealNVPImage((8, 8, 1), num_scales=1, num_blocks=1, num_filters=8))
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

    train_function: Any
    test_function: Any
    predict_function: Any

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Makes the schedules of the learning rate apply to a `train_step` of the subclass.

        Raises:
          TypeError: if the class overrides `call`, which no step uses.
        """
        super().__init_subclass__(**kwargs)
        expected = (
            f"{cls.__name__}: expected no `call`, because steps evaluate the distribution; "
            "override `compute_loss`, `compute_metrics`, `train_step` or `test_step`"
        )
        validation.require(cls.call is FlowSteps.call, expected, cls.call, TypeError)
        if cls.train_step is not FlowSteps.train_step:
            setattr(cls, "train_step", with_scheduled_rate(cls.train_step))  # noqa: B010

    def __init__(
        self,
        distribution: tfd.Distribution,
        *,
        dequantize: bool | None = None,
        dequantizer: VariationalDequantization | None = None,
        seed: int = 0,
        name: str | None = None,
    ) -> None:
        """Constructs the model.

        Args:
          distribution: a distribution over images [H, W, C] or vectors [D], such as a
            `tfd.TransformedDistribution` with a `RealNVPImage` or `RealNVPVector`.
          dequantize: whether values are integers that need noise, as gray levels do. Defaults to
            `True` for images and to `False` for vectors.
          dequantizer: distribution of the noise, trained with the model; uniform by default. With a
            `dequantizer`, `log p(x)` in the loss, the metrics and `predict` is the bound `log p(x +
            u) - log q(u | x)`.
          seed: seed of the noise.
          name: name of the model.

        Raises:
          TypeError: if `distribution` is not a `tfd.Distribution` or is a joint distribution, or
            `seed` is not a number.
          ValueError: if the events of `distribution` are neither images nor vectors, or are images
            with channels first; if it has batch dimensions; if its number of gray levels differs
            from the dequantizer's; or if it was not constructed in the scope of the same
            `tf.distribute.Strategy` as this model.
        """
        event_ndims = check_distribution(distribution, dequantize)
        if dequantize is None:
            dequantize = event_ndims == 3
        validation.flag(dequantize, "FlowModel: expected a bool as dequantize")
        when = "with dequantize=True"
        validation.only(dequantizer, "a dequantizer", dequantize, when, "FlowModel")
        num_values = routing.find_num_values(distribution)
        if dequantizer is not None and num_values is not None:
            expected = f"FlowModel: expected a dequantizer of num_values={num_values}, the flow's"
            fits = dequantizer.num_values == num_values
            validation.require(fits, expected, dequantizer.num_values)
        seed = validation.integer(seed, -(2**31), "FlowModel: expected an int32 seed", 2**31)
        modules = [distribution] if dequantizer is None else [distribution, dequantizer]
        variables = [variable for module in modules for variable in module.variables]
        replicas.check_scope("the distribution", variables)
        # Keras casts the inputs of `call` to the dtype of the model.
        super().__init__(name=name, dtype=distribution.dtype.name)
        self.distribution = distribution
        self.event_ndims = event_ndims
        self.dequantize = dequantize
        self.dequantizer = dequantizer
        self.seed = seed
        self.takes_condition = routing.takes_condition(distribution)
        self.condition_spec = routing.find_condition_spec(distribution)
        self._has_class_mixture = isinstance(parts_of(distribution)[-1], ClassMixture)
        uniform = pixels.UniformNoise if dequantize else pixels.NoNoise
        self.noise = uniform(distribution.dtype) if dequantizer is None else dequantizer
        parts = [part for module in modules for part in module.submodules]
        bijectors = [part for part in parts if isinstance(part, FlowBijector)]
        model_variables.build_networks(modules, parts)
        # Keras tracks layers only, so one layer wraps all other variables.
        clusters = [part.clusters for part in parts if isinstance(part, ClusterMixture)]
        layers = [*(layer for part in bijectors for layer in part.layers), *clusters]
        self.layers_of_bijectors = layers = list(dict.fromkeys(layers))
        self.other_variables = model_variables.TrackedVariables(layers, modules)
        self.gains_from_rewrites = model_variables.gains_from_rewrites(bijectors)
        scales = model_variables.find_scales(layers, bijectors)
        # Keras would track lists in attributes; functions hide these lists from Keras.
        self._bijectors, self._scales = lambda: bijectors, lambda: scales
        self._guard = FiniteGuard()
        self._bits_per_dim = replicas.ReplicatedMean(name="bits_per_dim")
        loss_tracker = replicas.ReplicatedMean(name="loss")
        self._own_loss_tracker = lambda: loss_tracker
        self._evaluation_guard = FiniteGuard()
        self.scale_l2 = 0.0
        self.global_statistics = True
        self.rate_factors: RateFactors | None = None
        self.validation_freq: int | list[int] = 1
        self._is_annealed = False
        self._after_fit = contextlib.ExitStack()
        self.built = True

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer | None = None,
        loss: None = None,
        *,
        scale_l2: float = 5e-5,
        global_statistics: bool = True,
        **kwargs: Any,
    ) -> None:
        """Configures training.

        Args:
          optimizer: by default `Muon(4e-3)` for images and `FusedAdam(1e-3)` for vectors, with
            gradients clipped to a global norm of 100. Each call of `fit` then decays the learning
            rate from `optimizer.learning_rate` to zero on a half-cosine schedule; with
            `initial_epoch`, `fit` resumes the schedule at that epoch. For a batch of B vectors, the
            schedule also multiplies the rate by `sqrt(B / 32)`, clipped to [1, 4]. A
            `LearningRateBudget` or `keras.callbacks.LearningRateScheduler` replaces this schedule.
            If you pass an optimizer, only its own schedule applies. The paper uses Adam at a
            constant rate, `FusedAdam(1e-3, global_clipnorm=100.0)`; see `benchmarks/README.md`.
          scale_l2: factor of the L2 penalty, the sum of squared weight-normalization and tanh
            scales.
          global_statistics: whether batch statistics average over the batch of all replicas of a
            `tf.distribute.Strategy`, as on one device. With `False` each replica normalizes by its
            own part of the batch without communication, and the replicas average the moving
            statistics after each step.
          loss, **kwargs: as in `keras.Model.compile`; `loss` and metrics must be `None`.

        Raises:
          ValueError: if a `loss` or metrics are given, `scale_l2` is negative, networks compute in
            float16, or the optimizer was not constructed in the scope of the model's
            `tf.distribute.Strategy`.
        """
        kwargs["loss"] = loss
        given = {k: kwargs[k] for k in ("loss", "metrics", "weighted_metrics") if kwargs.get(k)}
        expected = (
            "FlowModel.compile: expected no loss and no metrics: the loss is the negative log "
            "density. A subclass can override `compute_loss` and `compute_metrics`"
        )
        validation.require(not given, expected, given)
        if any(layer.compute_dtype == "float16" for layer in self.networks):
            raise ValueError(
                "FlowModel.compile: expected networks in float32, mixed_bfloat16 or float64, got "
                "float16, whose range is too small to train with; see `network_dtype`."
            )
        expected = "FlowModel.compile: expected a scale_l2 of at least 0"
        validation.real(scale_l2, lambda x: 0 <= x < math.inf, expected)
        is_annealed = optimizer is None
        with self.distribute_strategy.scope():
            if is_annealed:
                default = Muon if self.event_ndims == 3 else FusedAdam
                optimizer = default(_PEAKS[self.event_ndims], global_clipnorm=100.0)
            optimizer = keras.optimizers.get(optimizer)
            replicas.check_scope("the optimizer", [v.value for v in optimizer.variables])
            super().compile(optimizer=optimizer, **kwargs)
            self._loss_tracker = self._own_loss_tracker()
        if self.jit_compile:
            execution.advise_no_xla()
        self._is_annealed = is_annealed
        self.scale_l2 = scale_l2
        self.global_statistics = global_statistics

    @property
    def networks(self) -> list[keras.layers.Layer]:
        """Networks and condition embeddings of the distribution and of the dequantizer."""
        kinds = ("network", "embedding")
        parts = [(part, getattr(part, kind, None)) for part in self._bijectors() for kind in kinds]
        return list(dict.fromkeys(layer for part, layer in parts if layer in part.layers))

    def build_optimizer(self) -> None:
        """Creates the optimizer's variables if they do not exist, as `fit` does at its start."""
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Replaces the weights by their averages, for an optimizer with `use_ema=True`.

        Restores the weights on exit. Does nothing for other optimizers.
        """
        optimizer = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        if not getattr(optimizer, "use_ema", False) or not optimizer.iterations.numpy():
            yield
            return
        variables = self.trainable_variables
        weights = [tf.identity(variable.value) for variable in variables]
        try:
            optimizer.finalize_variable_values(variables)
            yield
        finally:
            for variable, value in zip(variables, weights, strict=True):
                variable.value.assign(value)

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics: `loss`, for images also `bits_per_dim`, and metrics of a subclass."""
        ours = [self._loss_tracker] if self.compiled else []
        ours += [self._bits_per_dim] if self.event_ndims == 3 else []
        known = {id(metric) for metric in (*ours, self._bits_per_dim)}
        return [*ours, *(metric for metric in super().metrics if id(metric) not in known)]

    def make_train_function(self, force: bool = False) -> Callable[[Any], dict[str, tf.Tensor]]:
        """Makes the function that `fit` calls, which first checks that the last step was finite."""
        if self.train_function is None or force:
            self.build_optimizer()
            with self.distribute_strategy.scope():
                self.rate_factors = RateFactors(self.steps_per_execution)
            super().make_train_function(force)
            self.train_function = execution.made_faster(
                self, self.train_function, self.train_step, is_training=True
            )
        return self.train_function

    def make_test_function(self, force: bool = False) -> Callable[[Any], dict[str, tf.Tensor]]:
        """Makes the function that `evaluate` calls."""
        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = execution.made_faster(self, self.test_function, self.test_step)
        return self.test_function

    def make_predict_function(self, force: bool = False) -> Callable[[Any], Any]:
        """Makes the function that `predict` calls."""
        if self.predict_function is None or force:
            super().make_predict_function(force)
            self.predict_function = execution.made_faster(self, self.predict_function)
        return self.predict_function

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does.

        Issues a `UserWarning` if the flow misclassifies labeled events of a `ClassMixture`.

        Args:
          x: images, or a dataset of images, conditions and weights.
          *args: as in `keras.Model.fit`; `y` holds the conditions.
          **kwargs: as in `keras.Model.fit`. `sample_weight` are weights of at least 0, [N];
            `class_weight` is for labels.

        Raises:
          ValueError: if there are no images; images are not [B, H, W, C] or not finite gray levels
            of the model; conditions are not as declared, or the distribution takes no condition;
            weights are negative or all zero; no variable is trainable; or all means of a
            `ClassMixture` are equal and no labels are known before training.
          NonFiniteLossError: if the loss or its gradient is not finite.
        """
        self._check_trainable()
        arguments = arguments_for_keras(self, "fit", x, *args, **kwargs)
        if self.event_ndims == 3:
            execution.advise_onednn()
        self._guard.reset()
        self.validation_freq = arguments.get("validation_freq", 1)
        callbacks = keras.tree.flatten(arguments.get("callbacks") or [])
        ends = ("is_used_up", "is_out_of_patience")
        if any(getattr(callback, end, False) for callback in callbacks for end in ends):
            # Keras lets callbacks stop the training only after a step.
            arguments["epochs"] = arguments.get("initial_epoch", 0)
        separation = None
        if self._has_class_mixture:
            budgets = [callback for callback in callbacks if hasattr(callback, "fraction")]
            data = None if replicas.num_workers(self.distribute_strategy) > 1 else arguments["x"]
            separation = ClassSeparation(self.distribution, data, self.dequantize, budgets)
            callbacks = arguments["callbacks"] = [*callbacks, separation]
        schedules = (LearningRateBudget, keras.callbacks.LearningRateScheduler)
        has_schedule = any(isinstance(callback, schedules) for callback in callbacks)
        if self._is_annealed and not has_schedule:
            # With larger batches of vectors, steps are fewer and less noisy and allow higher rates.
            power = 0.5 if self.event_ndims == 1 else 0.0
            made = max([getattr(c, "made_batches", (0, 0)) for c in callbacks], default=(0, 0))
            arguments["callbacks"] = [*callbacks, CosineAnnealing(power, made)]
        # Initialization reads the first batch, which cannot be put back into a Python iterator.
        self._may_initialize = not isinstance(x, Iterator)
        try:
            history = super().fit(**arguments)
            history.params["validation_freq"] = self.validation_freq
        finally:
            self._may_initialize = False
            self._after_fit.close()
            if self.rate_factors is not None:
                self.rate_factors.assign(0, lambda index: 1.0)
        self.raise_failure()
        if separation is not None:
            separation.warn_of_errors()
        if history.epoch and not history.history.get("loss"):
            raise ValueError("FlowModel.fit: expected data to train on, got an empty dataset.")
        return history

    def call_after_fit(self, function: Callable[[], None]) -> None:
        """Calls a function once at the end of `fit`, even if `fit` raises an error.

        Callbacks need this method because Keras does not call `on_train_end` after an error.
        """
        self._after_fit.callback(function)

    def evaluate(self, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as `keras.Model.evaluate` does; see `fit` for `x` and errors.

        Issues a `RuntimeWarning` if the loss is not finite.
        """
        self._evaluation_guard.reset()
        if kwargs.get(private_api.WITHIN_FIT, False):
            with self.averaged_weights():
                results = super().evaluate(x, *args, **kwargs)
        else:
            arguments = arguments_for_keras(self, "evaluate", x, *args, **kwargs)
            results = super().evaluate(**arguments)
        self._evaluation_guard.raise_failure()
        if not self._loss_tracker.count.numpy():
            raise ValueError(
                "FlowModel.evaluate: expected data, got an empty dataset, or weights of zero only."
            )
        warn_unless_finite(self._loss_tracker.result().numpy(), "evaluate")
        return results

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Returns log p in nats for each image, [N]; see `fit` for `x` and errors.

        Issues a `RuntimeWarning` if a log density is not finite.
        """
        arguments = arguments_for_keras(self, "predict", x, *args, **kwargs)
        callbacks = keras.tree.flatten(arguments.get("callbacks") or [])
        arguments["callbacks"] = [*callbacks, execution.RequireBatch()]
        self._evaluation_guard.reset()
        log_prob = super().predict(**arguments)
        self._evaluation_guard.raise_failure()
        warn_unless_finite(log_prob, "predict")
        return log_prob

    sample = sampler.sample

    def log_prob(
        self, x: Any, conditional_input: Any = None, *, batch_size: int | None = None
    ) -> np.ndarray:
        """Calls `predict` with events and conditions; returns log p in nats for each event, [N]."""
        data = x if conditional_input is None else (x, conditional_input)
        return self.predict(data, batch_size=batch_size, verbose=0)

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: dict[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """Trains on a batch as `keras.Model.train_on_batch` does; see `fit` for `x` and errors."""
        self._check_trainable()
        data = checked_batch(self, (x, y, sample_weight), class_weight)
        self._guard.reset()
        options = {"class_weight": class_weight, "return_dict": return_dict}
        self._may_initialize = True
        try:
            logs = super().train_on_batch(*data, **options)
        finally:
            self._may_initialize = False
        self.raise_failure()
        return logs

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Evaluates as `keras.Model.test_on_batch` does; see `fit` for `x` and errors."""
        data = checked_batch(self, (x, y, sample_weight))
        return super().test_on_batch(*data, return_dict=return_dict)

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """Returns log p in nats for each image of a batch, [B]; see `fit` for `x` and errors."""
        return super().predict_on_batch(checked_batch(self, (x, None, None))[0])

    def _check_trainable(self) -> None:
        if not self.trainable_variables:
            raise ValueError(
                "FlowModel: expected variables to train, got none; set `model.trainable = True`, "
                "and call `model.compile()` again."
            )
        flow, noise = self.distribution, getattr(self.dequantizer, "bijector", None)
        for module, is_forward in ((flow, False), (noise, True)):
            for part in model_variables.normalizations_in_forward(module, is_forward):
                raise ValueError(
                    f"FlowModel: expected data to pass through {part.name} by `inverse`, in which "
                    "batch normalization learns its statistics, got `forward`, as in a "
                    "`tfb.Invert`; `ActNorm` learns in both directions."
                )
