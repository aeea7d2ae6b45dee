"""Normalizations of channels: `ActNorm` and `BatchNormalization`."""

import warnings
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.bijectors.flow_bijector import FlowBijector, Pass
from tfp_realnvp.internal import private_api, replicas, validation


class ChannelVariables(keras.layers.Layer):
    """The variables of a map of channels. `num_channels` is `None` until they are built."""

    num_channels: int | None = None

    def __init__(self, dtype: Any, name: str) -> None:
        super().__init__(dtype=tf.as_dtype(dtype).name, name=name.replace("/", "_"))

    def get_config(self) -> dict[str, Any]:
        """Returns constructor arguments that make an equal layer without variables."""
        return {"dtype": self.variable_dtype, "name": self.name}

    def create(self, num_channels: int) -> None:
        """Creates the variables if they do not exist."""
        if not self.built:
            with tf.init_scope():
                self.build([None, num_channels])

    def build(self, input_shape: Any) -> None:
        """Creates the variables."""
        self.num_channels = input_shape[-1]

    def _add(self, name: str, shape: list[int], value: str = "zeros", **options: Any) -> Any:
        return self.add_weight(
            shape=shape, initializer=value, autocast=False, aggregation="mean", name=name, **options
        )


class ChannelMap(FlowBijector):
    """An affine map of channels. Copies share its variables.

    The constructor creates the variables if it gets `num_channels`, otherwise the first call.
    """

    _shared_argument: str

    def __init__(
        self, parameters: dict[str, Any], make: type[ChannelVariables], **options: Any
    ) -> None:
        name, num_channels = parameters["name"], parameters["num_channels"]
        dtype = validation.float_dtype(parameters["dtype"], name)
        if "epsilon" in parameters:
            expected = f"{name}: expected a positive epsilon"
            self._epsilon = validation.positive(parameters["epsilon"], expected, dtype)
        if parameters[self._shared_argument] is None:
            parameters[self._shared_argument] = make(dtype, name)
        self._channels: Any = parameters[self._shared_argument]
        if num_channels is not None:
            self._channels.create(validation.count(num_channels, "num_channels", 1, name))
        self._track_layers(self._channels)
        super().__init__(parameters=parameters, **options)

    def get_config(self) -> dict[str, Any]:
        """Returns constructor arguments that create an equal bijector with new variables."""
        return {**super().get_config(), "num_channels": self._channels.num_channels}

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        return tf.TensorShape([*[None] * (self.event_ndims - 1), self._channels.num_channels])

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape[-1] is None:
            raise ValueError(f"{self.name}: expected a known number of channels, got {shape}.")


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class LearnedAffine(ChannelVariables):
    """Each channel's trainable shift and log scale, and a flag: has a batch set them?"""

    def build(self, input_shape: Any) -> None:
        """Creates the variables."""
        super().build(input_shape)
        self.shift = self._add("shift", [self.num_channels])
        self.log_scale = self._add("log_scale", [self.num_channels])
        self.is_set = self._add("is_set", [], trainable=False)

    @property
    def is_known_to_be_set(self) -> bool:
        """Whether a batch has set the variables; `False` if a graph hides the flag's value."""
        if not self.built:
            return False
        with tf.init_scope():
            is_set = self.is_set.value
            # Within a `keras.StatelessScope` the value is a tensor, perhaps a symbolic one.
            is_known = isinstance(is_set, tf.Variable) and tf.executing_eagerly()
            return is_known and bool(is_set.numpy() > 0)

    def warn_if_unset(self) -> None:
        """Warns if a gradient tape records a pass before a batch has set the variables."""
        if private_api.could_possibly_record() and not self.is_known_to_be_set:
            warnings.warn(
                "ActNorm: no batch has set scale and shift, so training starts without "
                "normalization. `FlowModel.fit` sets them; in your own loop, call "
                "`flow.log_prob(x)` first, `with tfr.call_options(training=True)`.",
                stacklevel=2,
            )

    def set_once(
        self, images: tf.Tensor, epsilon: float, statistics: replicas.Statistics, inverse: bool
    ) -> None:
        """Sets the variables so that results for `images` are normalized, unless they are set."""
        if self.is_known_to_be_set:
            return
        images = tf.stop_gradient(images)
        mean, variance = statistics.moments(images, shift=self.shift.value)
        if statistics.span_replicas:
            # The variance over replicas is accurate only for a shift near the mean.
            mean, variance = statistics.moments(images, shift=mean)
        # A channel that is constant but for rounding, as in a batch of one vector, has no scale.
        rounding = tf.square(validation.rounding(mean, mean.dtype))
        log_std = 0.5 * tf.math.log(variance + epsilon)
        log_std = tf.where(variance <= rounding, tf.zeros_like(log_std), log_std)
        values = (mean, -log_std) if inverse else (-mean * tf.exp(-log_std), log_std)
        # Skip moments that are not finite: no later batch would replace them.
        is_finite = tf.reduce_all(tf.math.is_finite(tf.concat(values, axis=0)))
        sets = is_finite & (self.is_set.value <= 0)
        values = *values, tf.ones([], mean.dtype)
        for variable, value in zip((self.shift, self.log_scale, self.is_set), values, strict=True):
            replicas.assign(variable, tf.where(sets, value, variable.value))


class ActNorm(ChannelMap):
    r"""An affine map of each channel, which the first training batch initializes.

    ```
    inverse (data -> latent):  x = (y - shift) * exp(log_scale)
    forward (latent -> data):  y = x * exp(-log_scale) + shift
    ildj = H W sum(log_scale)
    ```

    The first inverse pass with `training=True` sets `shift` and `log_scale` so that each channel of
    `x` has mean 0 and variance 1 over the batch and all positions. If the first pass is a forward
    pass, as in a `tfb.Invert`, each channel of `y` has these moments. Channels that are constant in
    this batch keep their scale. After this pass, training and evaluation use the same map.

    `FlowModel.fit` runs this pass before it traces the training step. In your own loop, call
    `flow.inverse(first_batch, training=True)` eagerly before you trace the training step. Graphs
    traced afterwards assume that the variables are set. A graph traced earlier computes the moments
    in each step.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> bijector = tfr.ActNorm()
    >>> y = tf.random.normal([64, 8, 8, 3], mean=5., stddev=2.)
    >>> x = bijector.inverse(y, training=True)
    >>> bool(abs(tf.reduce_mean(x)) < 1e-3), bool(abs(tf.math.reduce_std(x) - 1) < 1e-2)
    (True, True)

    Attributes:
      learned: the layer with the variables.

    #### References

    Kingma, Dhariwal: Glow, section 3.1.
    """

    _shared_argument = "learned"

    def __init__(
        self,
        *,
        num_channels: int | None = None,
        epsilon: float = 1e-6,
        learned: LearnedAffine | None = None,
        event_ndims: int = 3,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "act_norm",
    ) -> None:
        """Constructs the bijector.

        Args:
          num_channels: number of channels. With `None` the first call creates the variables.
          epsilon: added to the first batch's variance, positive.
          learned: the variables of another `ActNorm`, to share them.
          event_ndims, dtype, validate_args, name: as in `FlowBijector`.

        Raises:
          TypeError, ValueError: if an argument has a wrong type, or is not positive.
        """
        super().__init__(dict(locals()), LearnedAffine)
        self.learned: LearnedAffine = self._channels

    @property
    def variables_set_in_training(self) -> tuple[tf.Variable, ...]:
        """All variables before the first training batch, and no variables afterwards."""
        return () if self.learned.is_known_to_be_set else tuple(self._layer_variables)

    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        self.learned.create(x.shape[-1])
        if p.training:
            self.learned.set_once(x, self._epsilon, p.statistics, inverse=False)
        log_scale = tf.convert_to_tensor(self.learned.log_scale.value)
        y = x * tf.exp(-log_scale) + self.learned.shift.value
        return y, self._log_det_of_positions(x, -tf.reduce_sum(log_scale), p)

    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        self.learned.create(y.shape[-1])
        if p.training:
            self.learned.set_once(y, self._epsilon, p.statistics, inverse=True)
        else:
            self.learned.warn_if_unset()
        log_scale = tf.convert_to_tensor(self.learned.log_scale.value)
        ildj = self._log_det_of_positions(y, tf.reduce_sum(log_scale), p)
        return (y - self.learned.shift.value) * tf.exp(log_scale), ildj


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class MovingStatistics(ChannelVariables):
    """The moving mean and variance of each channel, and the number of updates."""

    def build(self, input_shape: Any) -> None:
        """Creates the variables."""
        super().build(input_shape)
        self.mean = self._add("moving_mean", [self.num_channels], trainable=False)
        self.variance = self._add("moving_variance", [self.num_channels], "ones", trainable=False)
        self.num_updates = self._add("num_updates", [], trainable=False)


class BatchNormalization(ChannelMap):
    r"""Batch normalization. The inverse direction normalizes each channel; `forward` inverts this.

    With a mean μ and a variance σ² for each channel,

    ```
    inverse (data -> latent):  x = (y - μ) / sqrt(σ² + ε)
    forward (latent -> data):  y = x * sqrt(σ² + ε) + μ
    ildj = -H W / 2 * sum(log(σ² + ε)), the sum over channels
    ```

    The forward direction, and the inverse direction with `training=False`, use the moving
    statistics μ̃, σ̃². With `training=True` the inverse first updates them with the moments μ̂, σ̂²
    over the batch and all positions,

    ```
    μ̃ <- ρ μ̃ + (1 - ρ) μ̂,    σ̃² <- ρ σ̃² + (1 - ρ) σ̂²
    ```

    and then normalizes by the updated statistics, so that training and evaluation agree even for
    small batches. Gradients flow through μ̂ and σ̂² only (Appendix E). The first update uses ρ = 0.
    With `statistics='batch'` training normalizes by μ̂ and σ̂². Under a distribution strategy,
    `FlowModel.fit` computes the moments over all replicas; other calls use one replica.

    The forward direction learns no statistics. In a `tfb.Invert`, where data pass through
    `forward`, use `ActNorm`; `FlowModel.fit` refuses a `BatchNormalization` there.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> bijector = tfr.BatchNormalization(momentum=0.9)
    >>> y = tf.random.normal([64, 8, 8, 3], mean=5., stddev=2.)
    >>> x, ildj = bijector.inverse_and_log_det(y, training=True)   # the first step
    >>> bool(abs(tf.math.reduce_std(x) - 1) < 1e-2), ildj.shape
    (True, TensorShape([64]))

    Attributes:
      moving: the layer with the moving statistics.

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.7 and Appendix E.
    """

    _shared_argument = "moving"

    def __init__(
        self,
        momentum: float = 0.9,
        *,
        num_channels: int | None = None,
        epsilon: float = 1e-4,
        statistics: str = "running",
        moving: MovingStatistics | None = None,
        event_ndims: int = 3,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "batch_normalization",
    ) -> None:
        """Constructs the bijector.

        Args:
          momentum: ρ, in [0, 1).
          num_channels: number of channels. With `None` the first call creates the variables.
          epsilon: added to the variance, positive.
          statistics: the statistics that training normalizes by: `'running'` (the updated moving
            statistics, Appendix E) or `'batch'`.
          moving: the variables of another `BatchNormalization`, to share them.
          event_ndims, dtype, validate_args, name: as in `FlowBijector`.

        Raises:
          TypeError, ValueError: if an argument has a wrong type, or is out of range.
        """
        parameters = dict(locals())
        expected = f"{name}: expected statistics"
        self._statistics = validation.choice(statistics, ("running", "batch"), expected)
        self._momentum = validation.fraction(momentum, f"{name}: expected a momentum in [0, 1)")
        super().__init__(parameters, MovingStatistics)
        self.moving: MovingStatistics = self._channels

    @property
    def variables_set_in_training(self) -> tuple[tf.Variable, ...]:
        """The moving statistics."""
        return tuple(self._layer_variables)

    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        self.moving.create(x.shape[-1])
        variance = self.moving.variance.value + self._epsilon
        fldj = self._log_det_of_positions(x, 0.5 * tf.reduce_sum(tf.math.log(variance)), p)
        return x * tf.sqrt(variance) + self.moving.mean.value, fldj

    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        moving = self.moving
        moving.create(y.shape[-1])
        mean, variance = (tf.convert_to_tensor(v.value) for v in (moving.mean, moving.variance))
        if p.training:
            num_updates = tf.convert_to_tensor(moving.num_updates.value)
            batch = p.statistics.moments(y, shift=mean)
            # The first update replaces the initial values.
            momentum = tf.where(num_updates > 0, tf.constant(self._momentum, y.dtype), 0)
            pairs = zip((mean, variance), batch, strict=True)
            updated = [momentum * old + (1 - momentum) * new for old, new in pairs]
            replicas.assign(moving.mean, updated[0])
            replicas.assign(moving.variance, updated[1])
            # The number does not depend on the batch, so a graph could count a batch that fails.
            with tf.control_dependencies(batch):
                replicas.assign(moving.num_updates, num_updates + 1)
            mean, variance = batch if self._statistics == "batch" else updated
        variance += self._epsilon
        ildj = self._log_det_of_positions(y, -0.5 * tf.reduce_sum(tf.math.log(variance)), p)
        return (y - mean) * tf.math.rsqrt(variance), ildj
