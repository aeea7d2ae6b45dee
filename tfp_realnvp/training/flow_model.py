"""Trains a distribution as a Keras model, by maximum likelihood."""

import contextlib
import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_realnvp import pixels
from tfp_realnvp.bijectors import ActNorm
from tfp_realnvp.bijectors.flow_bijector import call_options
from tfp_realnvp.distributions import VariationalDequantization, objective, routing, sampler
from tfp_realnvp.distributions.data_spec import Batch, DataSpec, parse
from tfp_realnvp.internal import private_api, replicas, runtime, validation
from tfp_realnvp.training.diagnosis import FiniteRecord
from tfp_realnvp.training.few_labels import ClassSeparation
from tfp_realnvp.training.fused_adam import FusedAdam
from tfp_realnvp.training.input_data import (
    ArrayBatches,
    arguments_for_keras,
    checked_data,
    checked_events,
    errors_of_checks,
    with_first,
)
from tfp_realnvp.training.learning_rate import (
    CosineAnnealing,
    LearningRateBudget,
    StepRates,
    step_of,
)
from tfp_realnvp.training.model_parts import ModelParts
from tfp_realnvp.training.muon import Muon
from tfp_realnvp.training.savable_model import SavableModel
from tfp_realnvp.training.steps import CompileOptions, EvaluationStep, StepResult, TrainingStep

# Default learning rates, by the rank of an event.
_PEAKS = {1: 1e-3, 3: 4e-3}
# Standard deviation of a channel below which a step of the optimizer is large.
_SMALLEST_STDDEV = 0.002


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class FlowModel(SavableModel):
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
        that begins with images, or a dictionary with `'image'`, or with `'x'` for vectors; a
        generator yields tuples, `(images,)` without labels. `FlowModel` casts floats to the
        distribution's dtype.
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
    *   For a `ClusterMixture`, `fit` validates with the four clusters nearest to each event;
        `evaluate` is exact.
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
    # What `fit` and `train_on_batch` do with the first batch, before the first step.
    _on_first_batch: Callable[[Any, int], None] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Raises `TypeError` if the class overrides `call`, which no step uses."""
        super().__init_subclass__(**kwargs)
        expected = f"{cls.__name__}: expected no `call`, because steps evaluate the distribution; "
        expected += "override `compute_loss`, `compute_metrics`, `train_step` or `test_step`"
        validation.require(cls.call is FlowModel.call, expected, cls.call, TypeError)

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
        spec = DataSpec(distribution, dequantize, dequantizer, seed)
        variables = [variable for module in spec.modules for variable in module.variables]
        replicas.check_scope("the distribution", variables)
        super().__init__(spec, name=name)
        spec.build_networks()
        self._parts = ModelParts(spec)
        # Keras tracks the variables of layers in attributes.
        self.layers_of_bijectors = self._parts.layers
        self.other_variables = self._parts.other_variables
        self._step = TrainingStep(spec, self._parts)
        self._evaluation = EvaluationStep(spec, spec.distribution)
        self._bits_per_dim = replicas.ReplicatedMean(name="bits_per_dim")
        self._loss_tracker = replicas.ReplicatedMean(name="loss")
        self.validation_freq: int | list[int] = 1
        self._after_fit = contextlib.ExitStack()
        self.built = True

    @property
    def compile_options(self) -> CompileOptions:
        """The options of `compile` besides those of `keras.Model.compile`; immutable."""
        return self._step.options

    @property
    def step_rates(self) -> StepRates | None:
        """The learning rates that a schedule plans for the next steps; `None` before `compile`."""
        return self._step.rates

    @property
    def has_own_train_step(self) -> bool:
        """Whether a subclass overrides `train_step`."""
        return type(self).train_step is not FlowModel.train_step

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer | None = None,
        loss: None = None,
        *,
        scale_l2: float = 5e-5,
        global_statistics: bool = True,
        anneal: bool | None = None,
        first_step: int | None = None,
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
            The paper uses Adam at a constant rate, `FusedAdam(1e-3, global_clipnorm=100.0)`; see
            `benchmarks/README.md`.
          scale_l2: factor of the L2 penalty, the sum of squared weight-normalization and tanh
            scales.
          global_statistics: whether batch statistics average over the batch of all replicas of a
            `tf.distribute.Strategy`, as on one device. With `False` each replica normalizes by its
            own part of the batch without communication, and the replicas average the moving
            statistics after each step.
          anneal: whether `fit` decays the learning rate as described above. By default, only that
            of the default optimizer: an optimizer that you pass has its own schedule.
          first_step: number of the next training step, which determines the noise of the step. By
            default, continues after the steps that this model has made with earlier optimizers.
          loss, **kwargs: as in `keras.Model.compile`; `loss` and metrics must be `None`.

        Raises:
          ValueError: if a `loss` or metrics are given, `scale_l2` or `first_step` is negative,
            networks compute in float16, or the optimizer was not constructed in the scope of the
            model's `tf.distribute.Strategy`.
        """
        kwargs["loss"] = loss
        given = {k: kwargs[k] for k in ("loss", "metrics", "weighted_metrics") if kwargs.get(k)}
        expected = "FlowModel.compile: expected no loss and no metrics: the loss is the negative "
        expected += "log density. A subclass can override `compute_loss` and `compute_metrics`"
        validation.require(not given, expected, given)
        if any(layer.compute_dtype == "float16" for layer in self.networks):
            raise ValueError(
                "FlowModel.compile: expected networks in float32, mixed_bfloat16 or float64, got "
                "float16, whose range is too small to train with; see `network_dtype`."
            )
        options = CompileOptions(
            scale_l2=scale_l2,
            global_statistics=global_statistics,
            anneal=optimizer is None if anneal is None else anneal,
            first_step=self._next_step() if first_step is None else first_step,
        )
        with self.distribute_strategy.scope():
            if optimizer is None:
                rank = self.data_spec.event_ndims
                default = Muon if rank == 3 else FusedAdam
                optimizer = default(_PEAKS[rank], global_clipnorm=100.0)
            optimizer = keras.optimizers.get(optimizer)
            replicas.check_scope("the optimizer", [v.value for v in optimizer.variables])
            super().compile(optimizer=optimizer, **kwargs)
            rates = StepRates(self.steps_per_execution)
        self._approximate_test_function: Any = None
        if self.jit_compile:
            runtime.advise_no_xla()
        self._step = TrainingStep(self.data_spec, self._parts, optimizer, options, rates)

    def _next_step(self) -> int:
        """Returns the number of the next training step, over all optimizers of this model."""
        return self.compile_options.first_step + step_of(self) if self.compiled else 0

    @property
    def networks(self) -> list[keras.layers.Layer]:
        """Networks and condition embeddings of the distribution and of the dequantizer."""
        return self._parts.networks

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
        ours += [self._bits_per_dim] if self.data_spec.event_ndims == 3 else []
        # Keras lists the metrics of compiled models within a network too, and logs them by name.
        names = {metric.name for metric in (*ours, self._bits_per_dim)}
        return [*ours, *(metric for metric in super().metrics if metric.name not in names)]

    def make_train_function(self, force: bool = False) -> Callable[[Any], dict[str, tf.Tensor]]:
        """Makes the function that `fit` calls, which first checks that the last step was finite."""
        if self.train_function is None or force:
            self.build_optimizer()
            super().make_train_function(force)
            # Check one step late: reading the result of a step waits for the step to end.
            options = self._parts.gains_from_rewrites, self.train_step, self.raise_failure
            self.train_function = runtime.made_faster(self, self.train_function, *options)
        return self.train_function

    def make_test_function(self, force: bool = False) -> Callable[[Any], dict[str, tf.Tensor]]:
        """Makes the function that `evaluate` calls."""
        if self.test_function is None or force:
            super().make_test_function(force)
            options = self._parts.gains_from_rewrites, self.test_step
            self.test_function = runtime.made_faster(self, self.test_function, *options)
        return self.test_function

    def make_predict_function(self, force: bool = False) -> Callable[[Any], Any]:
        """Makes the function that `predict` calls."""
        if self.predict_function is None or force:
            super().make_predict_function(force)
            options = self.predict_function, self._parts.gains_from_rewrites
            self.predict_function = runtime.made_faster(self, *options)
        return self.predict_function

    def fit(self, x: Any = None, *args: Any, **kwargs: Any) -> keras.callbacks.History:
        """Trains as `keras.Model.fit` does.

        Issues a `UserWarning` if gray levels do not fit the model; if networks would hardly learn
        from a column of condition vectors, or the optimizer from values as small as the data; or if
        the flow misclassifies labeled events of a `ClassMixture`.

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
        if self.data_spec.event_ndims == 3:
            runtime.advise_onednn()
        self._step.guard.reset()
        self.validation_freq = arguments.get("validation_freq", 1)
        callbacks = keras.tree.flatten(arguments.get("callbacks") or [])
        ends = ("is_used_up", "is_out_of_patience")
        if any(getattr(callback, end, False) for callback in callbacks for end in ends):
            # Keras lets callbacks stop the training only after a step.
            arguments["epochs"] = arguments.get("initial_epoch", 0)
        separation = None
        if objective.class_mixture_of(self.distribution) is not None:
            budgets = [callback for callback in callbacks if hasattr(callback, "fraction")]
            data = None if replicas.num_workers(self.distribute_strategy) > 1 else arguments["x"]
            separation = ClassSeparation(self.data_spec, data, budgets)
            callbacks = arguments["callbacks"] = [*callbacks, separation]
        schedules = (LearningRateBudget, keras.callbacks.LearningRateScheduler)
        has_schedule = any(isinstance(callback, schedules) for callback in callbacks)
        if self.compile_options.anneal and not has_schedule:
            # See `TrainingStep.scheduled_rate`.
            power = 0.5 if self.data_spec.event_ndims == 1 else 0.0
            made = max([getattr(c, "made_batches", (0, 0)) for c in callbacks], default=(0, 0))
            # The first callback, so that the others find the optimizer's own rate after a step.
            arguments["callbacks"] = [CosineAnnealing(power, made), *callbacks]
        warns = not isinstance(arguments["x"], ArrayBatches)
        self._on_first_batch = functools.partial(self._begin_training, warns=warns)
        try:
            # Keras would take the first batch out of an iterator, and an epoch's order out of a
            # shuffled `PyDataset`.
            if isinstance(x, Iterator):
                first, arguments["x"] = with_first(x)
                self._maybe_symbolic_build(data_batch=first)
            elif isinstance(x, keras.utils.PyDataset) and x.num_batches != 0:
                self._maybe_symbolic_build(data_batch=x[0])
            with errors_of_checks():
                history = super().fit(**arguments)
            history.params["validation_freq"] = self.validation_freq
        finally:
            self._on_first_batch = None
            self._after_fit.close()
            self._step.rates.clear()
        self.raise_failure()
        if separation is not None:
            separation.warn_of_errors()
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
        if kwargs.get(private_api.WITHIN_FIT, False):
            with errors_of_checks(), self.averaged_weights(), self._approximation():
                results = super().evaluate(x, *args, **kwargs)
        else:
            arguments = arguments_for_keras(self, "evaluate", x, *args, **kwargs)
            with errors_of_checks():
                results = super().evaluate(**arguments)
        if type(self).test_step is FlowModel.test_step:
            if not self._loss_tracker.count.numpy():
                raise ValueError("FlowModel.evaluate: expected data with weights above zero.")
            validation.warn_unless_finite(self._loss_tracker.result(), "FlowModel.evaluate")
        return results

    @contextlib.contextmanager
    def _approximation(self) -> Iterator[None]:
        """Replaces the distribution that `test_step` scores by an approximation, if there is one.

        Each of the two has its own graph.
        """
        exact, approximate = self._evaluation, objective.approximation_of(self.distribution)
        if approximate is self.distribution:
            yield
            return
        exact_function, self.test_function = self.test_function, self._approximate_test_function
        self._evaluation = EvaluationStep(self.data_spec, approximate)
        try:
            yield
        finally:
            self._approximate_test_function = self.test_function
            self._evaluation, self.test_function = exact, exact_function

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> np.ndarray:
        """Returns log p in nats for each image, [N]; see `fit` for `x` and errors.

        Issues a `RuntimeWarning` if a log density is not finite.
        """
        arguments = arguments_for_keras(self, "predict", x, *args, **kwargs)
        with errors_of_checks():
            log_prob = super().predict(**arguments)
        validation.warn_unless_finite(log_prob, "FlowModel.predict")
        return log_prob

    def sample(
        self,
        num_samples: int,
        seed: int | Sequence[int] | None = None,
        *,
        temperature: float = 1.0,
        guidance: float = 0.0,
        conditional_input: Any = None,
    ) -> tf.Tensor:
        """Draws samples with one graph for any number of samples.

        With `temperature=1` and `guidance=0` the results are samples of `model.distribution`, equal
        to `distribution.sample(num_samples, seed=tf.constant([seed, 0]))`. A lower `temperature`
        and a higher `guidance` make samples more typical and less diverse. `temperature` scales the
        latents, `guidance` changes the parameters of each coupling:

        ```
        z ~ temperature * N(0, I);    parameters (1 + guidance) * a(c) - guidance * a(no condition)
        ```

        Args:
          num_samples: number of samples N.
          seed: one or two int32 numbers, or `None` for different samples in each call.
          temperature: standard deviation of the latents; the base must be standard normal.
          guidance: weight of the guidance, at least 0, for a flow that was trained with
            `condition_dropout`. Guidance needs a condition, and evaluates each network twice.
          conditional_input: one condition, or one for each sample, [N, ...]. With
            `condition_dropout`, `None` leaves the condition out.

        Returns:
          Continuous pixel values [N, H, W, C], which `tfr.to_uint8` rounds; or vectors [N, D].

        Raises:
          ValueError: if an argument does not apply to the model, or is out of range.
          TypeError: if an argument that must be a number is not one.

        #### References

        Ho, Salimans: Classifier-free diffusion guidance (2022).
        """
        options = temperature, guidance, conditional_input
        return sampler.sample(self.distribution, num_samples, seed, *options)

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
        data = checked_data(self, "train_on_batch", (x, y, sample_weight), class_weight)
        self._step.guard.reset()
        warns = not self.optimizer.iterations.numpy()
        self._on_first_batch = functools.partial(self._begin_training, warns=warns)
        try:
            with errors_of_checks():
                logs = super().train_on_batch(*data, class_weight, return_dict)
        finally:
            self._on_first_batch = None
        self.raise_failure()
        return logs

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """Evaluates as `keras.Model.test_on_batch` does; see `fit` for `x` and errors."""
        data = checked_data(self, "test_on_batch", (x, y, sample_weight))
        with errors_of_checks():
            return super().test_on_batch(*data, return_dict=return_dict)

    def predict_on_batch(self, x: Any) -> np.ndarray:
        """Returns log p in nats for each image of a batch, [B]; see `fit` for `x` and errors."""
        x, *_ = checked_data(self, "predict_on_batch", (x, None, None))
        with errors_of_checks():
            return super().predict_on_batch(x)

    def _check_trainable(self) -> None:
        if not self.trainable_variables:
            raise ValueError(
                "FlowModel: expected variables to train, got none; set `model.trainable = True`, "
                "and call `model.compile()` again."
            )
        for part in self._parts.normalizations_in_forward:
            raise ValueError(
                f"FlowModel: expected data to pass through {part.name} by `inverse`, in which "
                "batch normalization learns its statistics, got `forward`, as in a `tfb.Invert`; "
                "`ActNorm` learns in both directions."
            )

    @tf.autograph.experimental.do_not_convert
    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Makes one step that minimizes `compute_loss`, unless a value or gradient is not finite.

        A subclass can write a step of its own with `unpack_batch`, `training_log_prob`, `penalty`
        and `scheduled_rate`.
        """
        return self._updated_metrics(self._step(data, self.trainable_variables, self._objective))

    def unpack_batch(self, data: Any) -> Batch:
        """Returns events, condition and weights of a batch of any form that `fit` takes.

        Args:
          data: images [B, H, W, C] or vectors [B, D], a tuple of events, conditions and weights, or
            a dictionary; what `train_step` gets.

        Returns:
          A named tuple of `events`, tensors as in the data; `condition`, int32 labels or floats of
          the distribution's dtype, or `None`; and `weights`, [B] in the distribution's dtype, or
          `None`.

        Raises:
          ValueError: if known values, shapes or dtypes do not fit the distribution. Within a graph,
            other invalid values raise an `InvalidArgumentError` when the graph runs.
        """
        return checked_events(*self.data_spec.batch(data))

    def training_log_prob(self, batch: Batch, draw: int | tf.Tensor | None = None) -> tf.Tensor:
        """Returns the log densities that a training step maximizes, [B], in nats.

        These are log p(x) minus log q of the step's noise. Noise, dropped conditions and batch
        statistics are those of a step, which also updates the moving statistics. With labels of a
        `ClassMixture`, returns [2, B]: log densities with and without the labels.

        Args:
          batch: the result of `unpack_batch`.
          draw: number of the step, which determines noise and dropped conditions; by default the
            current step. Step k of the first `fit` has the number `compile_options.first_step + k`.
        """
        part = replicas.part_of_batch(tf.shape(batch.events)[0], batch.weights)
        return self._step.log_prob(batch, self._step.draw() if draw is None else draw, part.first)

    def scheduled_rate(self, batch: Batch) -> contextlib.AbstractContextManager[tf.Tensor]:
        """Returns a context in which the optimizer has the learning rate of the current step.

        Apply the gradients of a `train_step` of your own within the context: `with
        self.scheduled_rate(batch): self.optimizer.apply(...)`. Without the context, all steps of an
        execution have the rate of the first step, and the rate does not depend on the number of
        rows in the batch.
        """
        number = replicas.part_of_batch(tf.shape(batch.events)[0]).number
        return self._step.scheduled_rate(number, tf.constant(True))

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> tf.Tensor:
        """Returns the objective that training minimizes, a scalar; a subclass can override it.

        ```
        -sum_i w_i log p(x_i) / sum_i w_i + scale_l2 * sum(scales²) + sum(model.losses)
        ```

        A subclass adds a term to `super().compute_loss(...)`, or returns another objective. The
        metric `loss` is then the objective, in training and evaluation. With several replicas, each
        replica calls this method with its part of the batch, and the objective is the mean over
        replicas.

        Args:
          x: events of the batch, [B, ...].
          y: their conditions, or `None`.
          y_pred: log densities of `training_log_prob`, [B], or [2, B] for labels of a
            `ClassMixture`; with `training=False` log densities [B] of the events with their
            evaluation noise.
          sample_weight: weights [B], or `None`.
          training: `False` in `evaluate`.
        """
        loss = self._step.loss(Batch(x, y, sample_weight), y_pred, self.losses)
        return replicas.num_replicas() * loss

    def _objective(self, batch: Batch, log_prob: tf.Tensor, training: bool = True) -> tf.Tensor:
        """Returns this replica's term of the objective: the terms of all replicas add up."""
        arguments = {"y_pred": log_prob, "sample_weight": batch.weights, "training": training}
        loss = self.compute_loss(batch.events, batch.condition, **arguments)
        return loss / replicas.num_replicas()

    def penalty(self) -> tf.Tensor:
        """Returns the sum of the L2 penalty of `compile` and the losses of layers, a scalar."""
        return self._step.penalty(self.losses)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> dict[str, Any]:
        """Returns the values of all metrics; a subclass can update or add metrics.

        Arguments are as in `compute_loss`. `loss` and `bits_per_dim` are already updated.
        """
        return self.get_metrics_result()

    def _updated_metrics(self, result: StepResult) -> dict[str, tf.Tensor]:
        """Updates and returns the metrics."""
        batch, log_prob, total, mean, loss = result
        self._loss_tracker.update_state(loss if self._has_own_loss else -mean, total)
        if self.data_spec.event_ndims == 3:
            num_dims = tf.reduce_prod(tf.shape(batch.events)[1:])
            self._bits_per_dim.update_state(pixels.bits_per_dim(mean, num_dims), total)
        log_prob = log_prob[0] if log_prob.shape.rank == 2 else log_prob
        logs = self.compute_metrics(batch.events, batch.condition, log_prob, batch.weights)
        if replicas.num_workers(self.distribute_strategy) == 1:
            return logs
        # With several workers, Keras averages logs over a first axis.
        return {key: tf.expand_dims(value, axis=0) for key, value in logs.items()}

    @property
    def _has_own_loss(self) -> bool:
        return type(self).compute_loss is not FlowModel.compute_loss

    def raise_failure(self) -> None:
        """Raises an error, only once, if the loss or a gradient of a `train_step` was not finite.

        Call this after `train_step` in your own loop, as `fit` does: a failure skips later steps.

        Raises:
          NonFiniteLossError: names the step and its first computation that was not finite.
        """
        self._step.guard.raise_failure(lambda: self.trainable_variables)

    @tf.autograph.experimental.do_not_convert
    def test_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Updates the metrics with a batch."""
        evaluated = functools.partial(self._objective, training=False)
        return self._updated_metrics(
            self._evaluation(data, evaluated if self._has_own_loss else None)
        )

    @tf.autograph.experimental.do_not_convert
    def predict_step(self, data: Any) -> tf.Tensor:
        """Returns log p, [B], of a batch."""
        return self._evaluation.predict(data)

    def call(self, images: Any, training: bool | None = None) -> tf.Tensor:
        """Returns log p, [B], in nats, for continuous pixel values [B, H, W, C].

        Args:
          images: [B, H, W, C], or a tuple of images and their conditions.
          training: whether to use and update batch statistics; `None` means the value of
            the surrounding `call_options`, by default `False`.

        Raises:
          ValueError: if images are gray levels without noise: integers or, in eager mode, only
            whole numbers.
        """
        batch, checks = self.data_spec.batch(images, ignores_labels=False, have_noise=True)
        images, condition, _ = checked_events(batch, checks)
        images = tf.cast(images, self.distribution.dtype)
        with call_options(training=training, conditional_input=condition):
            return self.distribution.log_prob(routing.unseen(self.distribution, images))

    def _initialize_normalizations(self, data: Any) -> list[ActNorm]:
        """Initializes normalizations from the first batch, before a graph is traced; returns them.

        Without this call, and with a strategy, the step's graph initializes the normalizations.
        Initializes nothing if the batch fails a check of the data, or its log density is not
        finite: the first step then raises an error that names the cause.
        """
        norms = self._parts.act_norms
        to_set = {id(v) for norm in norms for v in norm.variables_set_in_training}
        if not to_set:
            return []
        statistics = self._parts.statistics
        before = [tf.convert_to_tensor(variable) for variable in statistics]
        is_valid = False
        try:
            record = FiniteRecord()
            batch, _ = self.data_spec.batch(data)
            log_prob = self._step.log_prob(batch, self._step.draw(), record=record)
            record.add("the log density", log_prob)
            is_valid = bool(tf.reduce_all(record.are_finite() > 0))
            is_valid &= batch.weights is None or bool(tf.reduce_any(batch.weights > 0))
        finally:
            # Restore even after an error, since some normalizations may already be set.
            for variable, value in zip(statistics, before, strict=True):
                if not (is_valid and id(variable) in to_set):
                    variable.assign(value)
        return norms if is_valid else []

    def _maybe_symbolic_build(self, iterator: Any = None, data_batch: Any = None) -> None:
        # Keras calls this with the first batch to build variables, and still trains on the batch.
        # Our variables exist already, so we check the batch, and use it to initialize `ActNorm`.
        begin, self._on_first_batch = self._on_first_batch, None
        strategy = self.distribute_strategy
        if begin is None or replicas.num_workers(strategy) > 1:
            return
        if iterator is not None:
            with contextlib.suppress(StopIteration, tf.errors.OutOfRangeError):
                for *_, batches in iterator:
                    data_batch = next(batches)
                    break
        if data_batch is not None:
            parts = map(strategy.experimental_local_results, tf.nest.flatten(data_batch))
            data_batch = tf.nest.pack_sequence_as(data_batch, [part[0] for part in parts])
            # The frames up to the caller of `train_on_batch`, or of `fit`, which Keras wraps.
            begin(data_batch, 4 if iterator is None else 5)

    def _begin_training(self, data: Any, stacklevel: int, warns: bool) -> None:
        """Checks the first batch, warns of its values, and initializes normalizations."""
        batch = parse(data)
        self.data_spec.check_values(batch, is_whole=False)
        if warns:
            self.data_spec.warn_of_values(batch, stacklevel + 1)
            rows = np.asarray(batch.events)
            if rows.ndim == 2:
                arguments = rows, self.distribution.dtype, "FlowModel.fit", stacklevel + 1
                validation.columns_apart(*arguments)
        with self.distribute_strategy.scope():
            has_strategy = tf.distribute.has_strategy()
        if not (has_strategy or self.run_eagerly):
            _warn_of_scales(self._initialize_normalizations(data), stacklevel + 1)


def _warn_of_scales(norms: Sequence[ActNorm], stacklevel: int) -> None:
    """Warns if a channel has so small values that steps of the optimizer are large beside them."""
    for norm in norms:
        smallest = math.exp(-float(tf.reduce_max(norm.learned.log_scale.value)))
        if smallest < _SMALLEST_STDDEV:
            warnings.warn(
                f"FlowModel.fit: a channel in {norm.name} has a standard deviation of "
                f"{smallest:.1g} or less in the first batch. Training is slow or fails, because "
                "steps of the optimizer are large beside such values. Scale the data, for example "
                "by `RealNVPVector(..., standardization=tfr.Standardization.of(rows))`.",
                stacklevel=stacklevel + 1,
            )
            return
