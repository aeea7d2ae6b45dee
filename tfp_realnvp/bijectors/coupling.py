"""Coupling layers: a mask, a network (the conditioner), and a transformer."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfp_realnvp.bijectors.flow_bijector import FlowBijector, Mapped, Pass
from tfp_realnvp.bijectors.flow_chain import call_part
from tfp_realnvp.bijectors.masks import ChannelMask, CheckerboardMask, Mask, SpatialMask
from tfp_realnvp.bijectors.transformers import Additive, Affine, Transformer
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal import replicas, validation
from tfp_realnvp.internal.batch_dims import flatten_batch, unflatten_batch
from tfp_realnvp.internal.recompute import recompute


class Coupling(FlowBijector):
    r"""Transforms half of an event, with parameters that a network predicts from the other half.

    With the mask `b`, the elementwise bijection `f` of the transformer and the network `θ`,

    ```
    forward (latent -> data):  x = b * z + (1 - b) * f(z; θ(b * z))
    inverse (data -> latent):  z = b * x + (1 - b) * inverse f(x; θ(b * x))
    ildj = sum((1 - b) * log |dz/dx|)
    ```

    The network outputs `P c` channels, for c transformed channels and P parameters per element.
    Neither direction inverts the network. The coupling tracks the network's variables.

    Without a transformer, the network returns the bijection itself; see `real_nvp_coupling`.

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

    _condition_spec: _NetworkCondition | None = None
    # The variables that the network read in its first call; set only without a transformer.
    _read_variables: Sequence[tf.Variable] | None = None

    def __init__(
        self,
        mask: Mask,
        network: Callable[..., Any],
        transformer: Transformer | None = None,
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
          mask: a `CheckerboardMask`, `ChannelMask` or `SpatialMask`, or an object with their
            methods.
          network: a layer or function that maps the kept half, [B, H, W, k], to parameters, [B, H,
            W, P c]; for vectors [B, k] to [B, P c]. The network's dtype may differ from `dtype`.
            The coupling passes the keyword arguments `training`, `conditional_input` and
            `statistics` if the network's call declares them. A `ConvResNet` inside a layer needs
            these `statistics` to use sample weights and other replicas.
          transformer: the elementwise bijection. Copies share the transformer and the network.
            With `None`, the network returns a `tfb.Bijector` for the changed half, or `(shift,
            log_scale)` for `x = z exp(log_scale) + shift`. A network that is a function also gets
            the number of changed channels; a Keras layer does not.
          conditional_event_shape: shape of one `conditional_input` of the network, a vector [K] or
            an image [H, W, K]. Defaults to the network's attribute of the same name. If neither is
            given, the coupling does not check conditions. The coupling squeezes condition images
            (2×2 space to depth) until they have K channels.
          event_ndims, dtype, validate_args, name: as in `FlowBijector`.
          parameters: the constructor arguments of a subclass.

        Raises:
          TypeError, ValueError: if an argument has a wrong type, the network does not take the
            condition, the mask does not fit vectors, or a `CheckerboardMask` lacks a transformer.
        """
        if parameters is None:
            parameters = dict(locals())
            del parameters["parameters"]
        # The class of a mask has the protocol's methods too, so `isinstance` would accept it.
        if isinstance(mask, type) or not isinstance(mask, Mask):
            expected = f"{name}: expected a mask, for example `tfr.CheckerboardMask()`"
            raise TypeError(f"{expected}, got {mask!r}.")
        if event_ndims == 1 and isinstance(mask, (CheckerboardMask, SpatialMask)):
            raise ValueError(f"{name}: expected a ChannelMask for vectors, got {mask}.")
        if transformer is not None and not isinstance(transformer, Transformer):
            raise TypeError(f"{name}: expected a Transformer, got {transformer!r}.")
        expected = f"{name}: expected a Transformer that creates its variables by `add_weight`"
        attributes = vars(transformer).values() if transformer is not None else ()
        others = [value for value in attributes if isinstance(value, tf.Variable)]
        validation.require(not others, expected, others, TypeError)
        if transformer is None and isinstance(mask, CheckerboardMask):
            raise ValueError(f"{name}: expected a transformer for {mask}, got None.")
        self.mask = mask
        self.network: Any = network
        self.transformer = transformer
        layers = [part for part in (network, transformer) if isinstance(part, keras.layers.Layer)]
        self._track_layers(*layers)
        self._network_arguments = set(_arguments(network))
        self.accepts_conditional_input = takes_condition(network)
        self._condition_spec = _declared_condition(network, conditional_event_shape, name)
        is_constant = getattr(transformer, "is_constant_jacobian", False)
        super().__init__(is_constant_jacobian=is_constant, parameters=parameters)

    @property
    def is_built(self) -> bool:
        """Whether the network's variables exist and the coupling tracks them."""
        is_known = self.transformer is not None or self._read_variables is not None
        return is_known and super().is_built

    @property
    def can_recompute(self) -> bool:
        """Whether the backward pass can recompute the network's activations."""
        return self.transformer is not None and isinstance(self.network, keras.layers.Layer)

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

    def _pass(self, event: tf.Tensor, p: Pass, inverse: bool) -> Mapped:
        if p.recompute and self.can_recompute and self.is_built:
            return self._recomputed_pass(event, p.but(recompute=False), inverse)
        if self._condition_spec is not None:
            p = p.but(condition=self._condition_spec.of_network(p.condition))
            if p.no_condition is not None:
                p = p.but(no_condition=self._condition_spec.of_network(p.no_condition))
        ndims, transformer = self.event_ndims, self.transformer
        kept, changed = self.mask.split(event)
        inputs = self._network_inputs(kept, changed, p.condition)
        options = {"training": p.training, "statistics": p.statistics}
        if self.accepts_conditional_input and p.condition is not None:
            options["conditional_input"] = p.condition
        options = {name: options[name] for name in options if name in self._network_arguments}
        if transformer is None:
            expected = f"{self.name}: expected a transformer for guidance"
            validation.require(p.no_condition is None, expected, transformer)
            bijector = self._bijector(inputs, changed.shape[-1], **options)
            values = flatten_batch(changed, ndims)
            inner = p.but(condition=None, observer=None, terms=None)
            values, log_det = call_part(bijector, values, inner, inverse, ndims)
            result = self.mask.merge(kept, unflatten_batch(values, changed, ndims))
            return result, unflatten_batch(log_det, changed, ndims)
        output = self.network(inputs, **options)
        if p.no_condition is not None and "conditional_input" in options:
            # Guidance extrapolates the parameters, since transformers accept any real numbers.
            without = self.network(inputs, **{**options, "conditional_input": p.no_condition})
            output += tf.cast(p.guidance, output.dtype) * (output - without)
        channels = changed.shape[-1]
        expected = transformer.num_parameters * channels
        if output.shape.rank != 1 + ndims or output.shape[-1] != expected:
            positions = "height, width, " if ndims == 3 else ""
            raise ValueError(
                f"{self.name}: expected {expected} channels from the network, "
                f"[batch, {positions}{expected}], for {channels} changed channels, "
                f"got shape {output.shape} for an input of shape {inputs.shape}."
            )
        output = unflatten_batch(tf.cast(output, self.dtype), changed, ndims)
        # Zero parameters at kept positions make affine transformers the identity there.
        parameters = self.mask.restrict(output)
        transform = transformer.inverse if inverse else transformer.forward
        changed, log_dets = transform(changed, parameters)
        if transformer.is_identity_at_zero and isinstance(self.mask, CheckerboardMask):
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

    def _recomputed_pass(self, event: tf.Tensor, p: Pass, inverse: bool) -> Mapped:
        """Like `_pass`, but the backward pass recomputes activations."""
        weights = [v for layer in self.layers for v in layer.trainable_variables]
        state = [v for layer in self.layers for v in layer.non_trainable_variables]
        weight_values, state_values = (
            [tf.convert_to_tensor(variable.value) for variable in variables]
            for variables in (weights, state)
        )
        is_floating = tf.is_tensor(p.condition) and p.condition.dtype.is_floating
        conditions = [p.condition] if is_floating else []
        inputs = [event, weight_values, conditions]

        def function(*flat: tf.Tensor) -> tuple[Sequence[tf.Tensor], list[tf.Tensor]]:
            event, weight_values, conditions = tf.nest.pack_sequence_as(inputs, flat)
            # Within this scope, layers read these values, and updates stay inside the scope.
            variables = zip([*weights, *state], [*weight_values, *state_values], strict=True)
            with keras.StatelessScope(list(variables), collect_losses=True) as scope:
                of_event = p.but(condition=conditions[0]) if conditions else p
                outputs = self._pass(event, of_event, inverse)
            outputs = (*outputs, *scope.losses)
            return outputs, [scope.get_current_value(variable) for variable in state]

        (result, log_det, *losses), new_state = recompute(function, tf.nest.flatten(inputs))
        self.network.add_loss(losses)
        for variable, before, after in zip(state, state_values, new_state, strict=True):
            if after is not before:
                replicas.assign(variable, after)
        return result, log_det

    def _bijector(self, *arguments: Any, **options: Any) -> tfb.Bijector:
        """Returns the network's bijector, or an affine bijector from its shift and log scale."""
        # A Keras layer takes only tensors, so it does not get the number of channels.
        arguments = arguments[:1] if isinstance(self.network, keras.layers.Layer) else arguments
        is_first = self._read_variables is None
        with tf.GradientTape() if is_first else contextlib.nullcontext() as tape:
            output = self.network(*arguments, **options)
        if is_first:
            self._read_variables = tape.watched_variables()
        if isinstance(output, tfb.Bijector):
            return output
        expected = f"{self.name}: expected a bijector or (shift, log_scale) from the network"
        is_pair = isinstance(output, (tuple, list)) and len(output) == 2
        validation.require(is_pair, f"{expected} of a coupling without a transformer", output)
        shift, log_scale = (tf.cast(0 if x is None else x, self.dtype) for x in output)
        return tfb.Chain([tfb.Shift(shift), tfb.Scale(log_scale=log_scale)])

    def _network_inputs(self, kept: tf.Tensor, changed: tf.Tensor, condition: Any) -> tf.Tensor:
        """Returns the network's input: the kept half, or if it is empty, the condition or ones."""
        if kept.shape[-1] != 0:
            return flatten_batch(kept, self.event_ndims)
        spec = self._condition_spec
        if spec is not None and spec.event_ndims == self.event_ndims:
            return condition
        return flatten_batch(tf.ones_like(changed[..., :1]), self.event_ndims)


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
        scale = self.transformer.get_config().get("scale")
        return {**super().get_config(), "scale": scale}

    @property
    def scale(self) -> keras.Variable | None:
        """The trainable factor of tanh; `None` for an additive coupling."""
        return getattr(self.transformer, "scale", None)


def real_nvp_coupling(
    num_masked: int | None = None,
    fraction_masked: float | None = None,
    shift_and_log_scale_fn: Callable[..., Any] | None = None,
    bijector_fn: Callable[..., Any] | None = None,
    **options: Any,
) -> Coupling:
    r"""Returns a coupling of vectors [..., D] with the arguments of `tfb.RealNVP`.

    The coupling keeps d elements and changes D - d:

    ```
    shift, log_scale = shift_and_log_scale_fn(z[kept], D - d)
    forward (latent -> data):  x[kept] = z[kept],  x[changed] = z[changed] * exp(log_scale) + shift
    ```

    With a `bijector_fn`, `x[changed] = bijector_fn(z[kept], D - d).forward(z[changed])`.

    The coupling gives the same densities as `tfb.RealNVP`. In `log_prob`, `tfb.RealNVP` calls the
    function twice, but this coupling only once. The kept elements have the shape [B, d].

    If the function is a Keras layer or a `tf.Module`, the coupling tracks all of its variables. For
    any other function, such as `tfb.real_nvp_default_template`, the coupling tracks the variables
    that the first call reads. To freeze or save a network, pass it as a Keras layer.

    #### Example

    >>> import keras, tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> network = keras.Sequential([keras.layers.Dense(8, 'tanh'), keras.layers.Dense(2)])
    >>> def shift_and_log_scale(x, output_units):
    ...   return tf.split(network(x), 2, axis=-1)
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [3]),
    ...     tfr.real_nvp_coupling(num_masked=2, shift_and_log_scale_fn=shift_and_log_scale))
    >>> flow.log_prob(flow.sample(5)).shape, len(flow.trainable_variables)
    (TensorShape([5]), 4)

    Args:
      num_masked: number of elements to keep: the first ones, or the last ones if negative.
      fraction_masked: instead of `num_masked`, a fraction of D in (-1, 1).
      shift_and_log_scale_fn: a function that takes the kept elements [B, d] and the number D - d,
        or a Keras layer that takes only the elements. The function returns the shift and the log
        scale. Both must broadcast to [B, D - d]; `None` stands for zeros.
      bijector_fn: instead of `shift_and_log_scale_fn`, a function that takes the same arguments and
        returns a `tfb.Bijector` on vectors [B, D - d].
      **options: `conditional_event_shape`, `dtype`, `validate_args` and `name`, as in `Coupling`.
        The function gets the condition as its argument `conditional_input`.

    Raises:
      TypeError, ValueError: if an argument is out of range or not a function, or if both or neither
        of two alternative arguments are given.

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, sections 3.2 and 3.3.
    """
    masked = [x for x in (num_masked, fraction_masked) if x is not None]
    functions = [f for f in (shift_and_log_scale_fn, bijector_fn) if f is not None]
    expected = "real_nvp_coupling: expected one of num_masked and fraction_masked, and one *_fn"
    validation.require(len(masked) == len(functions) == 1, expected, (masked, functions))
    expected = "real_nvp_coupling: expected |num_masked| of at least 1 or |fraction_masked| below 1"
    is_share = fraction_masked is not None
    validation.require((abs(masked[0]) < 1) == is_share, expected, masked[0])
    mask = ChannelMask(int(masked[0] < 0), num_first=masked[0])
    return Coupling(mask, functions[0], event_ndims=1, **options)


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
        condition = flatten_batch(condition, self.event_ndims)
        while self.event_ndims == 3 and condition.shape[-1] < self.event_shape[-1]:
            condition = tf.nn.space_to_depth(condition, 2)
        return condition


def _declared_condition(
    network: Callable[..., tf.Tensor], shape: Sequence[int | None] | None, name: str
) -> _NetworkCondition | None:
    declared = getattr(network, "conditional_event_shape", None)
    if (shape := declared if shape is None else shape) is None:
        return None
    expected = (
        f"{name}: expected a network with an argument `conditional_input`, for "
        f"conditional_event_shape={shape}"
    )
    validation.require(takes_condition(network), expected, network)
    spec = _NetworkCondition(shape)
    if declared is not None:
        expected = f"{name}: expected the conditional_event_shape of the network, {tuple(declared)}"
        fits = tf.TensorShape(spec.event_shape).is_compatible_with(declared)
        validation.require(fits, expected, spec.event_shape)
    return spec
