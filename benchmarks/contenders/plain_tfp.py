"""The same model written the plain TFP way: four separate hooks, in a `tfb.Chain`.

The networks, masks, squeezes and the logit are this package's; what differs is how they are bound
to TFP. Each hook of a coupling evaluates its network, as in `tfb.RealNVP`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from benchmarks.contenders.contender import Contender
from benchmarks.sizes import Size
from tfp_realnvp.masks import Mask

__all__ = ["PlainTFP"]

tfb = tfp.bijectors
tfd = tfp.distributions


class PlainTFP(Contender):
    """A `tfb.Chain`, trained by a `tf.function` with a gradient tape."""

    def __init__(
        self,
        size: Size,
        images: np.ndarray | None = None,
        *,
        policy: str = "float32",
        jit_compile: bool = False,
    ) -> None:
        """Builds the model.

        Args:
          size: the architecture and the batch size.
          images: to measure on.
          policy: the Keras dtype policy.
          jit_compile: whether XLA compiles the three functions.
        """
        super().__init__(size, images)
        keras.config.set_dtype_policy(policy)
        self._mode = _Mode()
        self._couplings: list[_Coupling] = []
        flow = self._scale(0, size.image_shape[-1], size.num_filters)
        bijector = tfb.Chain([tfr.PixelLogit(), *flow])
        base = tfd.Sample(tfd.Normal(0.0, 1.0), size.image_shape)
        self.distribution = tfd.TransformedDistribution(base, bijector)
        self._variables = [v for c in self._couplings for v in c.trainable()]
        self._scales = [v for c in self._couplings for v in c.scales()]
        self._optimizer = keras.optimizers.Adam(1e-3, global_clipnorm=100.0)
        self._optimizer.build(self._variables)
        compiled = tf.function(jit_compile=jit_compile)
        self._train = compiled(self._train_on)
        self._log_prob = compiled(self._log_prob_of)
        self._sample = compiled(lambda: self.distribution.sample(size.batch_size))
        self._values = tf.constant(self.images, tf.float32) + 0.5

    def _scale(self, index: int, channels: int, filters: int) -> list[tfb.Bijector]:
        """Returns the bijectors of a scale and of those below it, the one next to the data first.

        They are laid out as in `RealNVPImage`.
        """
        is_last = index == self.size.num_scales - 1
        boards = [tfr.CheckerboardMask(i % 2) for i in range(4 if is_last else 3)]
        checkerboard = list(self._mask_steps(boards, channels, filters))
        if is_last:
            return checkerboard
        halves = [tfr.ChannelMask(i % 2) for i in range(3)]
        channelwise = list(self._mask_steps(halves, 4 * channels, 2 * filters))
        plain, ordered = tfr.Squeeze(), tfr.Squeeze(order="factor_out")
        following = tfb.Chain(self._scale(index + 1, 2 * channels, 2 * filters))
        return [
            *checkerboard,
            tfb.Invert(plain),
            *channelwise,
            plain,
            tfb.Invert(ordered),
            tfb.Blockwise([following, tfb.Identity()], [2 * channels, 2 * channels]),
            ordered,
        ]

    def _mask_steps(self, masks: list[Mask], channels: int, filters: int) -> Iterator[tfb.Bijector]:
        for mask in masks:
            coupling = _Coupling(mask, channels, self.size.num_blocks, filters, self._mode)
            self._couplings.append(coupling)
            yield coupling
            yield _Normalization(channels, self._mode)

    def _train_on(self, images: tf.Tensor) -> tf.Tensor:
        values = tf.cast(images, tf.float32) + tf.random.uniform(tf.shape(images))
        with self._mode.of_training(), tf.GradientTape() as tape:
            nll = -tf.reduce_mean(self.distribution.log_prob(values))
            squares = [tf.reduce_sum(tf.square(scale)) for scale in self._scales]
            loss = nll + 5e-5 * tf.add_n(squares)
        self._optimizer.apply(tape.gradient(loss, self._variables), self._variables)
        return nll

    def _log_prob_of(self, values: tf.Tensor) -> tf.Tensor:
        return self.distribution.log_prob(values)

    def train_on(self, images: np.ndarray) -> float:
        """Makes one step of the `tf.function`."""
        return float(self._train(images))

    def log_prob(self) -> np.ndarray:
        """Returns `distribution.log_prob` of the batch."""
        return self._log_prob(self._values).numpy()

    def sample(self) -> np.ndarray:
        """Returns `distribution.sample(batch_size)`."""
        return self._sample().numpy()

    def score(self, images: np.ndarray) -> np.ndarray:
        """Returns `distribution.log_prob` of noisy images."""
        noise = np.random.default_rng(0).random(images.shape, np.float32)
        return self._log_prob(tf.constant(images + noise)).numpy()

    @property
    def num_parameters(self) -> int:
        """The number of trainable numbers."""
        return sum(int(np.prod(v.shape)) for v in self._variables)


class _Mode:
    """Whether the hooks are being traced for training; `tfb.Chain` has no way to say so."""

    def __init__(self) -> None:
        self.training = False

    def of_training(self) -> _Mode:
        return self

    def __enter__(self) -> None:
        self.training = True

    def __exit__(self, *exception: object) -> None:
        self.training = False


class _Coupling(tfb.Bijector):
    """An affine coupling whose hooks know nothing of each other."""

    def __init__(
        self,
        mask: Mask,
        channels: int,
        num_blocks: int,
        num_filters: int,
        mode: _Mode,
        name: str = "coupling",
    ) -> None:
        is_board = isinstance(mask, tfr.CheckerboardMask)
        changed = mask.changed_channels(channels)
        self._network = tfr.ConvResNet(
            2 * changed,
            num_blocks,
            num_filters,
            checkerboard_parity=mask.parity if is_board else None,
        )
        self._network.build((None, None, None, channels if is_board else channels - changed))
        self._scale = tf.Variable(1.0)
        self._mask = mask
        self._mode = mode
        # The network tells couplings apart, which TFP's cache would else take for equal.
        parameters = {"network": self._network, "mask": mask, "name": name}
        super().__init__(
            forward_min_event_ndims=3, dtype=tf.float32, parameters=parameters, name=name
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {}

    def trainable(self) -> list[tf.Variable]:
        return [v.value for v in self._network.trainable_variables] + [self._scale]

    def scales(self) -> list[tf.Variable]:
        return [v.value for v in self._network.variables if v.name == "scale"] + [self._scale]

    def _shift_and_log_scale(self, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        output = tf.cast(self._network(kept, training=self._mode.training), tf.float32)
        shift, log_scale = tf.split(self._mask.restrict(output), 2, axis=-1)
        return shift, self._scale * tf.tanh(log_scale)

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        kept, changed = self._mask.split(x)
        shift, log_scale = self._shift_and_log_scale(kept)
        return self._mask.merge(kept, (changed - shift) * tf.exp(-log_scale))

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        kept, changed = self._mask.split(y)
        shift, log_scale = self._shift_and_log_scale(kept)
        return self._mask.merge(kept, changed * tf.exp(log_scale) + shift)

    def _forward_log_det_jacobian(self, x: tf.Tensor) -> tf.Tensor:
        kept, _ = self._mask.split(x)
        return -tf.reduce_sum(self._shift_and_log_scale(kept)[1], axis=[-3, -2, -1])

    def _inverse_log_det_jacobian(self, y: tf.Tensor) -> tf.Tensor:
        kept, _ = self._mask.split(y)
        return tf.reduce_sum(self._shift_and_log_scale(kept)[1], axis=[-3, -2, -1])


class _Normalization(tfb.Bijector):
    """Batch normalisation of a coupling's output, by the moving statistics (Appendix E)."""

    def __init__(self, channels: int, mode: _Mode, name: str = "normalization") -> None:
        self._mean = tf.Variable(tf.zeros([channels]), trainable=False)
        self._variance = tf.Variable(tf.ones([channels]), trainable=False)
        self._mode = mode
        parameters = {"mean": self._mean, "name": name}
        super().__init__(
            forward_min_event_ndims=3, dtype=tf.float32, parameters=parameters, name=name
        )

    @classmethod
    def _parameter_properties(cls, dtype: Any) -> dict[str, Any]:
        return {}

    def _moments(self, y: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        if not self._mode.training:
            return self._mean, self._variance
        mean, variance = tf.nn.moments(y, axes=[0, 1, 2])
        return (
            0.9 * tf.stop_gradient(self._mean) + 0.1 * mean,
            0.9 * tf.stop_gradient(self._variance) + 0.1 * variance,
        )

    def _forward(self, x: tf.Tensor) -> tf.Tensor:
        return x * tf.sqrt(self._variance + 1e-4) + self._mean

    def _inverse(self, y: tf.Tensor) -> tf.Tensor:
        mean, variance = self._moments(y)
        return (y - mean) * tf.math.rsqrt(variance + 1e-4)

    def _inverse_log_det_jacobian(self, y: tf.Tensor) -> tf.Tensor:
        mean, variance = self._moments(y)
        if self._mode.training:
            # Here and not in `_inverse`, which `log_prob` asks first: both normalise alike.
            self._mean.assign(mean)
            self._variance.assign(variance)
        positions = y.shape[-3] * y.shape[-2]
        return -0.5 * positions * tf.reduce_sum(tf.math.log(variance + 1e-4))
