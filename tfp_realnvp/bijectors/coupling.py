"""Coupling layers: a mask, a network (the conditioner), and a transformer."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.bijectors.flow_bijector import FlowBijector, Mapped, Pass
from tfp_realnvp.bijectors.masks import CheckerboardMask, Mask, SpatialMask
from tfp_realnvp.bijectors.transformers import Additive, Affine, Transformer
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal import batch_dims, recompute, validation


class NetworkCoupling(FlowBijector):
    """The base of couplings: a mask, and a network that sees the kept half and the condition."""

    transformer: Transformer | None = None
    _condition_spec: "_NetworkCondition | None" = None

    def __init__(
        self, mask: Mask, network: Any, shape: Any, event_ndims: int, parameters: Any, name: str
    ) -> None:
        """Constructs the base; `shape` is the `conditional_event_shape`."""
        expected = (
            f"{name}: expected a mask, for example `tfr.CheckerboardMask()`, or an instance of a "
            "subclass of `tfr.Mask` with the methods split, restrict, merge and changed_channels"
        )
        validation.require(isinstance(mask, Mask), expected, mask, TypeError)
        if event_ndims == 1 and isinstance(mask, (CheckerboardMask, SpatialMask)):
            raise ValueError(f"{name}: expected a ChannelMask for vectors, got {mask}.")
        self.mask = mask
        self.network = network
        parts = network, self.transformer
        self._track_layers(*(part for part in parts if isinstance(part, keras.layers.Layer)))
        self._network_arguments = set(_arguments(network))
        self.accepts_conditional_input = takes_condition(network)
        self._condition_spec = _declared_condition(network, shape, name)
        super().__init__(parameters=parameters)

    @property
    def variables_set_in_training(self) -> tuple[tf.Variable, ...]:
        """The network's non-trainable variables: moving statistics and random seeds."""
        return tuple(v for v in self._layer_variables if not v.trainable)

    @property
    def conditional_event_shape(self) -> tf.TensorShape | None:
        """Shape of one `conditional_input`; `None` if the shape is not declared."""
        spec = self._condition_spec
        return None if spec is None else tf.TensorShape(spec.event_shape)

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape[-1] is None:
            raise ValueError(f"{self.name}: expected a known number of channels, got {shape}.")
        self.mask.changed_channels(shape[-1])

    def _output(self, kept: tf.Tensor, changed: tf.Tensor, p: Pass, *others: Any) -> Any:
        """Calls the network with the kept half, or if it is empty, with the condition or ones."""
        spec, condition, ndims = self._condition_spec, p.condition, self.event_ndims
        if spec is not None:
            condition = spec.of_network(condition)
            # Move the condition to the positions of the network's input.
            condition = self.mask.arrange(condition) if spec.event_ndims == 3 else condition
        if kept.shape[-1] != 0:
            inputs = batch_dims.flatten_batch(kept, ndims)
        elif spec is not None and spec.event_ndims == ndims:
            inputs = condition
        else:
            inputs = batch_dims.flatten_batch(tf.ones_like(changed[..., :1]), ndims)
        options = {"training": p.training, "statistics": p.statistics}
        if self.accepts_conditional_input and condition is not None:
            options["conditional_input"] = condition
        options = {name: options[name] for name in options if name in self._network_arguments}
        return self.network(inputs, *others, **options)


class Coupling(NetworkCoupling):
    r"""Transforms half of an event, with parameters that a network predicts from the other half.

    With the mask `b`, the elementwise bijection `f` of the transformer and the network `θ`,

    ```
    forward (latent -> data):  x = b * z + (1 - b) * f(z; θ(b * z))
    inverse (data -> latent):  z = b * x + (1 - b) * inverse f(x; θ(b * x))
    ildj = sum((1 - b) * log |dz/dx|)
    ```

    The network outputs `P c` channels, for c transformed channels and P parameters per element.
    Neither direction inverts the network. The coupling tracks the network's variables.

    In a `BijectorCoupling`, the network returns the bijection itself.

    If the network's call has an argument `conditional_input`, the coupling passes the condition to
    it. With a `conditional_event_shape`, the condition is required, and the leading shapes of
    events and conditions broadcast.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> spline = tfr.RationalQuadraticSpline(num_bins=4)
    >>> network = tfr.ShallowConv(spline.num_parameters * 2)
    >>> coupling = tfr.Coupling(tfr.ChannelMask(), network, spline)
    >>> z, ildj = coupling.inverse_and_log_det(tf.random.normal([5, 4, 4, 4]))
    >>> z.shape, ildj.shape
    (TensorShape([5, 4, 4, 4]), TensorShape([5]))

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, sections 3.2 to 3.4, eq. 7-9.
    Papamakarios et al.: Normalizing flows, section 3.1.2, for coupling layers with transformers.
    """

    def __init__(
        self,
        mask: Mask,
        network: Callable[..., Any],
        transformer: Transformer,
        *,
        conditional_event_shape: Sequence[int | None] | None = None,
        event_ndims: int = 3,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        parameters: dict[str, Any] | None = None,
        name: str = "coupling",
    ) -> None:
        """Constructs the coupling.

        Args:
          mask: a `CheckerboardMask`, `ChannelMask` or `SpatialMask`, or another `Mask`.
          network: a layer or function that maps the kept half, [B, H, W, k], to parameters, [B, H,
            W, P c]; for vectors [B, k] to [B, P c]. The network's dtype may differ from `dtype`.
            The coupling passes the keyword arguments `training`, `conditional_input` and
            `statistics` if the network's call declares them. A `ConvResNet` inside a layer needs
            these `statistics` to use sample weights and other replicas.
          transformer: the elementwise bijection. Copies share the transformer and the network.
          conditional_event_shape: shape of one `conditional_input` of the network, a vector [K] or
            an image [H, W, K]. Defaults to the network's attribute of the same name. If neither is
            given, the coupling does not check conditions. The coupling squeezes condition images
            (2×2 space to depth) until they have K channels.
          event_ndims, dtype, validate_args, name: as in `FlowBijector`.
          parameters: the constructor arguments of a subclass.

        Raises:
          TypeError, ValueError: if an argument has a wrong type, the network does not take the
            condition, or the mask does not fit vectors.
        """
        if parameters is None:
            parameters = dict(locals())
            del parameters["parameters"]
        expected = f"{name}: expected a Transformer"
        if transformer is None:
            expected += ", or for a network that returns a bijector a `tfr.BijectorCoupling`"
        validation.require(isinstance(transformer, Transformer), expected, transformer, TypeError)
        expected = f"{name}: expected a Transformer that creates its variables by `add_weight`"
        others = [v for v in vars(transformer).values() if isinstance(v, tf.Variable)]
        validation.require(not others, expected, others, TypeError)
        self.transformer: Any = transformer
        super().__init__(mask, network, conditional_event_shape, event_ndims, parameters, name)

    @property
    def can_recompute(self) -> bool:
        """Whether the backward pass can recompute the network's activations."""
        return isinstance(self.network, keras.layers.Layer)

    def _pass(self, event: tf.Tensor, p: Pass, inverse: bool) -> Mapped:
        if p.recompute and self.can_recompute and self.is_built:
            return self._recomputed_pass(event, p, inverse)
        kept, changed = self.mask.split(event)
        output = self._output(kept, changed, p)
        if p.no_condition is not None and self.accepts_conditional_input:
            # Guidance extrapolates the parameters, since transformers accept any real numbers.
            without = self._output(kept, changed, p.but(condition=p.no_condition))
            output += tf.cast(p.guidance, output.dtype) * (output - without)
        # Zero parameters at kept positions make affine transformers the identity there.
        parameters = self.mask.restrict(self._checked(output, changed))
        changed, log_dets = self._transformed(changed, parameters, inverse)
        if self.transformer.is_identity_at_zero and isinstance(self.mask, CheckerboardMask):
            # `changed` is the whole image, unchanged at kept positions, so no merge is needed.
            return changed, self._sum_over_event(log_dets, p)
        log_dets = self.mask.restrict(log_dets)
        if p.terms is not None:
            # A `SpatialMask` packs changed positions. Move log dets to the original positions.
            log_dets = self.mask.merge(tf.zeros_like(kept), log_dets)
        log_det = self._sum_over_event(log_dets, p)
        return self.mask.merge(kept, changed), log_det

    _forward_and_log_det = functools.partialmethod(_pass, inverse=False)
    _inverse_and_log_det = functools.partialmethod(_pass, inverse=True)

    def _checked(self, output: tf.Tensor, changed: tf.Tensor) -> tf.Tensor:
        """Returns the network's output with the leading shape of events, and checks its shape."""
        number = self.transformer.num_parameters * changed.shape[-1]
        positions = "height, width, " if self.event_ndims == 3 else ""
        if output.shape.rank != 1 + self.event_ndims or output.shape[-1] != number:
            raise ValueError(
                f"{self.name}: expected {number} channels from the network, [batch, {positions}"
                f"{number}], got shape {output.shape} for changed halves of shape {changed.shape}."
            )
        return batch_dims.unflatten_batch(tf.cast(output, self.dtype), changed, self.event_ndims)

    def _transformed(self, values: tf.Tensor, parameters: tf.Tensor, inverse: bool) -> Any:
        """Applies the transformer to the changed half, and checks the shapes that it returns."""
        direction = "inverse" if inverse else "forward"
        method = f"{self.name}: expected {type(self.transformer).__name__}.{direction} to"
        try:
            results = getattr(self.transformer, direction)(values, parameters)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            raise ValueError(
                f"{method} take values of shape {values.shape} and parameters of shape "
                f"{parameters.shape}, num_parameters={self.transformer.num_parameters} for each "
                f"value, got the error: {error}"
            ) from error
        parts = results if isinstance(results, (tuple, list)) else [results]
        shapes = [tf.convert_to_tensor(part).shape for part in parts]
        if len(shapes) != 2 or not all(map(values.shape.is_compatible_with, shapes)):
            raise ValueError(
                f"{method} return values and the log det of each value, two tensors of shape "
                f"{values.shape}, got {', '.join(map(str, shapes))}."
            )
        return results

    def _recomputed_pass(self, event: tf.Tensor, p: Pass, inverse: bool) -> Mapped:
        """Like `_pass`, but the backward pass recomputes activations."""
        is_floating = tf.is_tensor(p.condition) and p.condition.dtype.is_floating
        inputs = [event, p.condition] if is_floating else [event]

        def function(event: tf.Tensor, condition: Any = p.condition) -> Mapped:
            return self._pass(event, p.but(condition=condition, recompute=False), inverse)

        return recompute.recompute_layers(function, inputs, self.layers)


class AffineCoupling(Coupling):
    r"""A `Coupling` with the transformer `Affine` or `Additive`.

    With the mask `b` and `c` transformed channels, the network maps `b * z` to `2c` channels: the
    shift `t`, and `u`, which gives the log scale `s = scale * tanh(u)`:

    ```
    forward (latent -> data):  x = b * z + (1 - b) * (z - t(b * z)) * exp(-s(b * z))
    inverse (data -> latent):  z = b * x + (1 - b) * (x * exp(s(b * x)) + t(b * x))       (eq. 9)
    ildj = sum((1 - b) * s)
    ```

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

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, sections 3.2 to 3.4, eq. 7-9.
    Dinh, Krueger, Bengio: NICE, section 3.2, for the additive coupling.
    """

    def __init__(
        self,
        mask: Mask,
        network: Callable[..., tf.Tensor],
        *,
        use_scale: bool = True,
        scale: float | keras.Variable | None = None,
        conditional_event_shape: Sequence[int | None] | None = None,
        event_ndims: int = 3,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "affine_coupling",
    ) -> None:
        """Constructs the coupling.

        Args:
          network: as in `Coupling`. The network outputs `t` and `u`, [B, H, W, 2c]; with
            `use_scale=False` only `t`, [B, H, W, c].
          use_scale: `False` gives the additive coupling of NICE, with a log det of zero.
          scale: the trainable factor of tanh: a scalar variable, or its initial value.
          mask, conditional_event_shape, event_ndims, dtype, validate_args, name: as in `Coupling`.

        Raises:
          TypeError, ValueError: as in `Coupling`, or if `scale` is invalid or has no effect.
        """
        parameters = dict(locals())
        expected = f"{name}: expected a scale only with use_scale=True"
        validation.require(use_scale or scale is None, expected, scale)
        scale = 1.0 if scale is None else scale
        with tf.name_scope(name):
            transformer = Affine(scale, dtype) if use_scale else Additive()
        # Copies share the variable.
        parameters["scale"] = getattr(transformer, "scale", None)
        shapes: dict[str, Any] = {"conditional_event_shape": conditional_event_shape}
        shapes["event_ndims"] = event_ndims
        super().__init__(mask, network, transformer, parameters=parameters, name=name, **shapes)

    def get_config(self) -> dict[str, Any]:
        """Returns constructor arguments that make an equal bijector with new variables."""
        return {**super().get_config(), "scale": self.transformer.get_config().get("scale")}

    @property
    def scale(self) -> keras.Variable | None:
        """The trainable factor of tanh; `None` for an additive coupling."""
        return getattr(self.transformer, "scale", None)


def takes_condition(network: Callable[..., tf.Tensor]) -> bool:
    """Returns whether a network takes a condition; `conditional_event_shape=None` means no."""
    has_argument = "conditional_input" in _arguments(network)
    return has_argument and getattr(network, "conditional_event_shape", ()) is not None


def _arguments(network: Callable[..., tf.Tensor]) -> Mapping[str, Any]:
    function = network.call if isinstance(network, keras.layers.Layer) else network
    return inspect.signature(function).parameters


class _NetworkCondition(ConditionSpec):
    """Declares a network's condition, and squeezes condition images with too few channels."""

    def _fits(self, shape: tf.TensorShape) -> bool:
        if self.event_ndims == 3 and shape.rank == 3 and shape[-1]:
            *sides, channels = shape
            while channels < self.event_shape[-1]:
                channels *= 4
                sides = [None if side is None else side // 2 for side in sides]
            shape = tf.TensorShape([*sides, channels])
        return super()._fits(shape)

    def of_network(self, condition: tf.Tensor) -> tf.Tensor:
        """Squeezes the condition to the network's channels; flattens its leading shape to [B]."""
        condition = batch_dims.flatten_batch(condition, self.event_ndims)
        while self.event_ndims == 3 and condition.shape[-1] < self.event_shape[-1]:
            condition = tf.nn.space_to_depth(condition, 2)
        return condition


def _declared_condition(
    network: Callable[..., tf.Tensor], shape: Sequence[int | None] | None, name: str
) -> _NetworkCondition | None:
    declared = getattr(network, "conditional_event_shape", None)
    if (shape := declared if shape is None else shape) is None:
        return None
    expected = f"{name}: expected a network with an argument `conditional_input`, for "
    expected += f"conditional_event_shape={shape}"
    validation.require(takes_condition(network), expected, network)
    spec = _NetworkCondition(shape)
    if declared is not None:
        expected = f"{name}: expected the conditional_event_shape of the network, {tuple(declared)}"
        fits = tf.TensorShape(spec.event_shape).is_compatible_with(declared)
        validation.require(fits, expected, spec.event_shape)
    return spec
