"""Affine and additive coupling layers with any network as their conditioner."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp import checks
from tfp_realnvp.bijectors.batch_dims import flatten_batch, unflatten_batch
from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.bijectors.layer_variables import LayerVariables
from tfp_realnvp.bijectors.recomputation import recompute_gradient
from tfp_realnvp.bijectors.recomputed_run import Pass, apply_run
from tfp_realnvp.bijectors.traced_coupling import CouplingFunctions, can_be_traced, recomputed_step
from tfp_realnvp.masks import ChannelMask, CheckerboardMask, Mask

__all__ = ["AffineCoupling"]

# Keyword arguments of a network's call beside `training`, for those that have them.
_TENSOR_OPTIONS = ("conditional_input", "checkerboard_parity")


class AffineCoupling(FlowBijector):
    r"""Keeps one half of an image, and changes the other as a network says that sees the first.

    With the mask `b`, and `c` the number of channels of the changed half, the network gives `2c`
    channels for `b * z`: the shift `t` and, through `s = scale * tanh(.)`, the log scale `s`:

    ```
    forward (latent -> data):  x = b * z + (1 - b) * (z - t(b * z)) * exp(-s(b * z))
    inverse (data -> latent):  z = b * x + (1 - b) * (x * exp(s(b * x)) + t(b * x))       (eq. 9)
    ildj = sum((1 - b) * s)
    ```

    `scale` is a trainable scalar `tf.Variable`; with tanh it bounds the log scale. Neither
    direction inverts the network, so any network will do. `use_scale=False` gives the additive
    coupling of NICE: `c` channels, `s = 0`, a log det of zero.

    A network that is a Keras layer or model, or a `tf.Module`, brings its variables along. One that
    is built later, at its first call, does so from then on.

    #### Example

    >>> import keras, tensorflow as tf, tfp_realnvp as tfr
    >>> network = keras.Sequential([
    ...     keras.Input([None, None, 3]),
    ...     keras.layers.Conv2D(8, 3, padding='same', activation='relu'),
    ...     keras.layers.Conv2D(6, 3, padding='same')])
    >>> coupling = tfr.AffineCoupling(tfr.CheckerboardMask(0), network)
    >>> z, ildj = coupling.inverse_and_log_det(tf.random.normal([5, 4, 4, 3]))
    >>> z.shape, ildj.shape, len(coupling.trainable_variables)
    (TensorShape([5, 4, 4, 3]), TensorShape([5]), 5)

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.2 to 3.4, eq. 7 to 9.
    Dinh, Krueger, Bengio: NICE, section 3.2, for the additive coupling.
    """

    def __init__(
        self,
        mask: Mask,
        network: Callable[..., tf.Tensor],
        *,
        use_scale: bool = True,
        scale: float | tf.Variable = 1.0,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "affine_coupling",
    ) -> None:
        """Constructs the coupling.

        Args:
          mask: a `CheckerboardMask`, a `ChannelMask`, or another with their methods.
          network: from [B, H, W, k], the kept half as `mask` gives it, to [B, H, W, 2c]: `t`, then
            what `s` comes from ([B, H, W, c] if not `use_scale`). Called with the keyword
            arguments `training` and `conditional_input` if it has them, and with those of
            `Conditioner`. It may compute in another dtype.
          use_scale: `False` gives the additive coupling.
          scale: the initial value of the trainable scale of tanh, or the variable itself.
          dtype: `tf.float32` or `tf.float64`.
          validate_args: whether to look for values that are not finite.
          name: of the operations.

        Raises:
          TypeError: if `mask` is none, `network` not callable, `scale` neither number nor variable,
            `dtype` another one, or a flag no bool.
          ValueError: if `scale` is not finite.
        """
        parameters = dict(locals())
        _check_mask(mask, name)
        checks.flag(use_scale, f"{name}: expected a bool as use_scale")
        dtype = checks.float_dtype(dtype, name)
        if use_scale:
            _check_scale(scale, dtype, name)
        if not callable(network):
            raise TypeError(f"{name}: expected a layer or a function as network, got {network!r}.")
        with tf.name_scope(name):
            if use_scale and not isinstance(scale, tf.Variable):
                scale = tf.Variable(scale, dtype=dtype, name="scale")
            # A copy shares the variable, as it shares the network.
            parameters["scale"] = self._scale = scale if use_scale else None
            self._mask = mask
            self._network = network
            self._use_scale = use_scale
            self._functions = CouplingFunctions()
            self._is_layer = isinstance(network, keras.layers.Layer)
            self._network_variables = LayerVariables(network) if self._is_layer else ()
            signature = inspect.signature(network.call if self._is_layer else network).parameters
            self._network_options = tuple(
                option for option in ("training", *_TENSOR_OPTIONS) if option in signature
            )
            super().__init__(
                dtype=dtype,
                is_constant_jacobian=not use_scale,
                validate_args=validate_args,
                parameters=parameters,
                name=name,
            )

    @property
    def mask(self) -> Mask:
        """The mask."""
        return self._mask

    @property
    def network(self) -> Callable[..., tf.Tensor]:
        """The conditioner."""
        return self._network

    @property
    def scale(self) -> tf.Variable | None:
        """The learned scale of tanh; `None` for an additive coupling."""
        return self._scale

    @property
    def can_be_traced(self) -> bool:
        """Whether `recompute` makes it a function of its own, here and now."""
        return can_be_traced(self._network) and not self.accepts_conditional_input

    @property
    def functions(self) -> CouplingFunctions:
        """What was traced of it, for `recompute`."""
        return self._functions

    @property
    def layers(self) -> tuple[keras.layers.Layer, ...]:
        """The network, if it is a Keras layer."""
        return (self._network,) if self._is_layer else ()

    @property
    def variables_set_in_training(self) -> tuple[tf.Variable, ...]:
        """What the network counts as not trainable: moving statistics, random seeds."""
        return tuple(v for v in self._network_variables if not v.trainable)

    @property
    def accepts_conditional_input(self) -> bool:
        """Whether the network takes `conditional_input`."""
        return "conditional_input" in self._network_options

    @property
    def accepts_parity(self) -> bool:
        """Whether the parity of the mask may be another one for a call, as in `pure_call`."""
        if type(self._mask) is CheckerboardMask:
            takes = "checkerboard_parity" in self._network_options
            own = getattr(self._network, "checkerboard_parity", None)
            return takes and own == self._mask.parity
        return type(self._mask) is ChannelMask

    def _trackable_children(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        # `tf.train.Checkpoint` does not find all that a Keras 3 layer holds, for example not the
        # layers in tuples in a list, and leaves those out without a word.
        children = super()._trackable_children(*args, **kwargs)
        variables = {f"network_variable{i}": v for i, v in enumerate(self._network_variables)}
        return {**children, **variables}

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape[-1] is None:
            raise ValueError(f"{self.name}: expected a known number of channels, got {shape}.")
        self._mask.changed_channels(shape[-1])

    def _forward_and_log_det(self, x: tf.Tensor, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        return self._apply(x, inverse=False, options=options)

    def _inverse_and_log_det(self, y: tf.Tensor, **options: Any) -> tuple[tf.Tensor, tf.Tensor]:
        return self._apply(y, inverse=True, options=options)

    def _apply(
        self, image: tf.Tensor, inverse: bool, options: dict[str, Any]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        if options.get("recompute") and self.can_be_traced:
            static = self._static(options)
            step = functools.partial(recomputed_step, self, inverse=inverse, **static)
            result, [log_det] = apply_run([step], image)
            return result, log_det
        return self.pure_call(image, self._scale, inverse=inverse, **options)

    def joins_run(self, **options: Any) -> bool:
        """Whether it can be traced."""
        return self.can_be_traced

    def completes(self, other: FlowBijector) -> bool:
        """Whether it changes what another coupling keeps, and keeps what that changes."""
        if not (isinstance(other, AffineCoupling) and type(self._mask) is type(other.mask)):
            return False
        parities = self._mask.parity, other.mask.parity
        # That of a tensor is not known now, and that of another mask may mean anything.
        is_known = not any(tf.is_tensor(parity) for parity in parities)
        has_halves = type(self._mask) in (CheckerboardMask, ChannelMask)
        return has_halves and is_known and sum(parities) == 1

    def inverse_step(self, y: tf.Tensor, **options: Any) -> tuple[tf.Tensor, tf.Tensor, Pass]:
        """Returns `x`, the log det and the way back."""
        return recomputed_step(self, y, inverse=True, **self._static(options))

    def pure_call(
        self,
        image: tf.Tensor,
        scale: Any,
        *,
        inverse: bool,
        parity: tf.Tensor | None = None,
        **options: Any,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what both directions do, and the log det, as a function of all that they use.

        Args:
          image: [..., H, W, C].
          scale: of tanh.
          inverse: the direction.
          parity: instead of the mask's; `None` if not `accepts_parity`.
          **options: `training`, `conditional_input`, `recompute`.
        """
        mask = self._mask_of(parity)
        if parity is not None and type(mask) is CheckerboardMask:
            options["checkerboard_parity"] = parity
        kept, changed = mask.split(image)
        output = self._network_output(kept, changed.shape[-1], options)
        # Zero where the coupling keeps: tanh leaves it zero, and zero moves nothing.
        shift, log_scale = mask.restrict(output), None
        if self._use_scale:
            shift, log_scale = tf.split(shift, 2, axis=-1)
            log_scale = scale * tf.tanh(log_scale)
        if log_scale is None:
            log_det = tf.zeros(tf.shape(image)[:-3], image.dtype)
            changed = changed + shift if inverse else changed - shift
        elif inverse:
            log_det = tf.reduce_sum(log_scale, axis=[-3, -2, -1])
            changed = changed * tf.exp(log_scale) + shift
        else:
            log_det = -tf.reduce_sum(log_scale, axis=[-3, -2, -1])
            changed = (changed - shift) * tf.exp(-log_scale)
        return mask.merge(kept, changed), log_det

    def join(
        self, kept_of: tf.Tensor, changed_of: tf.Tensor, parity: tf.Tensor | None
    ) -> tf.Tensor:
        """Returns the image with what it keeps of one and what it changes of another."""
        mask = self._mask_of(parity)
        kept, changed = mask.split(kept_of)[0], mask.split(changed_of)[1]
        if type(mask) is CheckerboardMask:
            return kept + mask.restrict(changed)
        return mask.merge(kept, changed)

    def _mask_of(self, parity: tf.Tensor | None) -> Mask:
        return self._mask if parity is None else type(self._mask)(parity)

    def _network_output(self, kept: tf.Tensor, channels: int, options: dict[str, Any]) -> tf.Tensor:
        images = flatten_batch(kept)
        output = self._apply_network(images, options)
        expected = 2 * channels if self._use_scale else channels
        if output.shape.rank != 4 or output.shape[-1] != expected:
            raise ValueError(
                f"{self.name}: expected {expected} channels from the network, "
                f"[batch, height, width, {expected}], for {channels} that the coupling changes, "
                f"got shape {output.shape} for an input of shape {images.shape}."
            )
        return unflatten_batch(tf.cast(output, self.dtype), like=kept)

    def _apply_network(self, images: tf.Tensor, options: dict[str, Any]) -> tf.Tensor:
        static = self._static(options)
        tensors = {
            option: options[option]
            for option in _TENSOR_OPTIONS
            if option in self._network_options and options.get(option) is not None
        }
        if not options.get("recompute"):
            return self._network(images, **static, **tensors)
        return recompute_gradient(
            lambda images, *values: self._network(
                images, **static, **dict(zip(tensors, values, strict=True))
            ),
            [images, *tensors.values()],
            self.variables_set_in_training,
        )

    def _static(self, options: dict[str, Any]) -> dict[str, bool]:
        takes = "training" in self._network_options
        return {"training": options.get("training", False)} if takes else {}


def _check_mask(mask: Any, name: str) -> None:
    methods = ("split", "restrict", "merge", "changed_channels")
    # A class has them too, but no instance whose halves they are.
    missing = [each for each in methods if not callable(getattr(mask, each, None))]
    if isinstance(mask, type) or missing:
        raise TypeError(
            f"{name}: expected a CheckerboardMask, a ChannelMask, or another mask with the methods "
            f"{', '.join(methods)}, got {mask!r}."
        )


def _check_scale(scale: Any, dtype: tf.DType, name: str) -> None:
    expected = f"{name}: expected a finite number or a scalar {dtype.name} variable as scale"
    if not isinstance(scale, tf.Variable):
        checks.real(scale, lambda number: abs(number) <= dtype.max, expected)
    elif scale.dtype != dtype or scale.shape.rank != 0:
        raise TypeError(f"{expected}, got {scale!r}.")
