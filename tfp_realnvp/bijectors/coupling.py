"""Coupling layers: a mask, a network as conditioner, and a transformer."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.bijectors.masks import ChannelMask, CheckerboardMask, Mask, SpatialMask
from tfp_realnvp.bijectors.parts import pass_through
from tfp_realnvp.bijectors.passes import Pass
from tfp_realnvp.bijectors.transformers import Additive, Affine, Transformer
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal import replicas, validation
from tfp_realnvp.internal.batch_dims import flatten_batch, unflatten_batch
from tfp_realnvp.internal.recompute import recompute

__all__ = ["AffineCoupling", "Coupling", "real_nvp_coupling", "takes_condition"]

tfb = tfp.bijectors


class Coupling(FlowBijector):
    r"""Transforms one half of an event, with parameters predicted from the kept half.

    With the mask `b`, the elementwise bijection `f` of the transformer and the network `θ`,

    ```
    forward (latent -> data):  x = b * z + (1 - b) * f(z; θ(b * z))
    inverse (data -> latent):  z = b * x + (1 - b) * inverse f(x; θ(b * x))
    ildj = sum((1 - b) * log |dz/dx|)
    ```

    The network outputs `P c` channels, for c transformed channels and P parameters of each element.
    Neither direction inverts the network. Its variables are variables of the coupling.

    Without a transformer, the network gives the bijection itself, as the functions of `tfb.RealNVP`
    do; see `real_nvp_coupling`.

    A network with an argument `conditional_input` gets the condition of the call. If
    `conditional_event_shape` declares its shape, the leading shapes of events and condition
    broadcast, and a missing condition is an error.

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
    # The variables that a network without a transformer reads in its first call.
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
          mask: a `CheckerboardMask`, `ChannelMask`, `SpatialMask`, or an object with their methods.
          network: a layer or function from the kept half, [B, H, W, k], to parameters,
            [B, H, W, P c]; for vectors from [B, k] to [B, P c]. Its dtype may differ from `dtype`.
            Of the keyword arguments `training`, `conditional_input` and `statistics` it gets those
            that it has. A layer that contains a `ConvResNet` must pass `statistics` on; otherwise
            batch statistics average over one replica, without sample weights.
          transformer: the elementwise bijection. Copies share it and the network. `None`: the
            network gives a `tfb.Bijector` of the changed half, or a shift and a log scale, for
            `x = z exp(log scale) + shift`. It gets the number of changed channels as second
            argument, unless it is a Keras layer, which takes tensors only.
          conditional_event_shape: shape of one `conditional_input` of the network, a vector [K] or
            an image [H, W, K]. Defaults to the network's attribute of this name. If both are
            `None`, a condition is passed on unchecked. An image with fewer channels is squeezed,
            each 2×2 square to 4 channels, until it has K.
          event_ndims, dtype, validate_args, name: as in `FlowBijector`.
          parameters: the constructor arguments of a subclass.

        Raises:
          TypeError: if an argument has a wrong type.
          ValueError: if the network has no `conditional_input` of `conditional_event_shape`, the
            mask of vectors is not a `ChannelMask`, or a `CheckerboardMask` has no transformer.
        """
        if parameters is None:
            parameters = dict(locals())
            del parameters["parameters"]
        # The class of a mask has the methods of the protocol as well.
        if isinstance(mask, type) or not isinstance(mask, Mask):
            expected = f"{name}: expected a mask, for example `tfr.CheckerboardMask()`"
            raise TypeError(f"{expected}, got {mask!r}.")
        if event_ndims == 1 and isinstance(mask, (CheckerboardMask, SpatialMask)):
            raise ValueError(f"{name}: expected a ChannelMask for vectors, got {mask}.")
        if transformer is not None and not isinstance(transformer, Transformer):
            raise TypeError(f"{name}: expected a Transformer, got {transformer!r}.")
        expected = f"{name}: expected a Transformer whose variables its `add_weight` creates"
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
        self._accepts_condition = takes_condition(network)
        self._condition_spec = _declared_condition(network, conditional_event_shape, name)
        is_constant = getattr(transformer, "is_constant_jacobian", False)
        super().__init__(is_constant_jacobian=is_constant, parameters=parameters)

    @property
    def is_built(self) -> bool:
        """Whether the variables of the network exist and are known."""
        is_known = self.transformer is not None or self._read_variables is not None
        return is_known and super().is_built

    @property
    def can_recompute(self) -> bool:
        """Whether the gradient can compute the activations of the network again."""
        return self.transformer is not None and isinstance(self.network, keras.layers.Layer)

    @property
    def variables_set_in_training(self) -> tuple[tf.Variable, ...]:
        """The non-trainable variables of the network: moving statistics, random seeds."""
        return tuple(v for v in self._layer_variables if not v.trainable)

    @property
    def conditional_event_shape(self) -> tf.TensorShape | None:
        """Shape of one `conditional_input`; `None` if it is not declared."""
        spec = self._condition_spec
        return None if spec is None else tf.TensorShape(spec.event_shape)

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape[-1] is None:
            raise ValueError(f"{self.name}: expected a known number of channels, got {shape}.")
        self.mask.changed_channels(shape[-1])

    def _pass(self, event: tf.Tensor, p: Pass, inverse: bool) -> tuple[tf.Tensor, tf.Tensor]:
        if self._condition_spec is not None:
            p = p.but(condition=self._condition_spec.of_network(p.condition))
            if p.no_condition is not None:
                p = p.but(no_condition=self._condition_spec.of_network(p.no_condition))
        if p.recompute and self.can_recompute and self.is_built:
            return self._recomputed_pass(event, p, inverse)
        return self._transform(event, p, inverse)

    _forward_and_log_det = functools.partialmethod(_pass, inverse=False)
    _inverse_and_log_det = functools.partialmethod(_pass, inverse=True)

    def _recomputed_pass(
        self, event: tf.Tensor, p: Pass, inverse: bool
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the result of `_transform`; its gradient evaluates the network again."""
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
            # The layers read these values instead of their variables, and write no variable.
            variables = zip([*weights, *state], [*weight_values, *state_values], strict=True)
            with keras.StatelessScope(list(variables), collect_losses=True) as scope:
                of_event = p.but(condition=conditions[0]) if conditions else p
                outputs = self._transform(event, of_event, inverse)
            outputs = (*outputs, *scope.losses)
            return outputs, [scope.get_current_value(variable) for variable in state]

        (result, log_det, *losses), new_state = recompute(function, tf.nest.flatten(inputs))
        self.network.add_loss(losses)
        for variable, before, after in zip(state, state_values, new_state, strict=True):
            if after is not before:
                replicas.assign(variable, after)
        return result, log_det

    def _transform(self, event: tf.Tensor, p: Pass, inverse: bool) -> tuple[tf.Tensor, tf.Tensor]:
        ndims, transformer = self.event_ndims, self.transformer
        kept, changed = self.mask.split(event)
        inputs = self._network_inputs(kept, changed, p.condition)
        options = {"training": p.training, "statistics": p.statistics}
        if self._accepts_condition and p.condition is not None:
            options["conditional_input"] = p.condition
        options = {name: options[name] for name in options if name in self._network_arguments}
        if transformer is None:
            expected = f"{self.name}: expected a coupling with a transformer for guidance"
            validation.require(p.no_condition is None, expected, transformer)
            bijector = self._bijector(inputs, changed.shape[-1], **options)
            values = flatten_batch(changed, ndims)
            inner = p.but(condition=None, observer=None, terms=None)
            values, log_det = pass_through(bijector, values, inner, inverse, ndims)
            result = self.mask.merge(kept, unflatten_batch(values, changed, ndims))
            return result, unflatten_batch(log_det, changed, ndims)
        output = self.network(inputs, **options)
        if p.no_condition is not None and "conditional_input" in options:
            # Sums of parameters are parameters: transformers take any real numbers.
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
        # With zero parameters, affine transformers are the identity where the coupling keeps the
        # image.
        parameters = self.mask.restrict(output)
        transform = transformer.inverse if inverse else transformer.forward
        changed, log_dets = transform(changed, parameters)
        if transformer.is_identity_at_zero and isinstance(self.mask, CheckerboardMask):
            # The transformed half is the whole image, with unchanged kept positions.
            return changed, self._sum_over_event(log_dets, p)
        log_dets = self.mask.restrict(log_dets)
        if p.terms is not None:
            # Log dets by position need the place of each term; a `SpatialMask` gathers the changed
            # half.
            log_dets = self.mask.merge(tf.zeros_like(kept), log_dets)
        log_det = self._sum_over_event(log_dets, p)
        return self.mask.merge(kept, changed), log_det

    def _bijector(self, *arguments: Any, **options: Any) -> tfb.Bijector:
        """Returns the bijector of the changed half by a network without a transformer."""
        # Keras layers take tensors only.
        arguments = arguments[:1] if isinstance(self.network, keras.layers.Layer) else arguments
        is_first = self._read_variables is None
        with tf.GradientTape() if is_first else contextlib.nullcontext() as tape:
            output = self.network(*arguments, **options)
        if is_first:
            self._read_variables = tape.watched_variables()
        if isinstance(output, tfb.Bijector):
            return output
        expected = f"{self.name}: expected a bijector, or shift and log scale, from the network"
        is_pair = isinstance(output, (tuple, list)) and len(output) == 2
        validation.require(is_pair, f"{expected} without a transformer", output)
        shift, log_scale = (tf.cast(0 if x is None else x, self.dtype) for x in output)
        return tfb.Chain([tfb.Shift(shift), tfb.Scale(log_scale=log_scale)])

    def _network_inputs(self, kept: tf.Tensor, changed: tf.Tensor, condition: Any) -> tf.Tensor:
        """Returns the kept half, [B, ..., k]; if it is empty, the condition or a constant."""
        if kept.shape[-1] != 0:
            return flatten_batch(kept, self.event_ndims)
        spec = self._condition_spec
        if spec is not None and spec.event_ndims == self.event_ndims:
            return condition
        return flatten_batch(tf.ones_like(changed[..., :1]), self.event_ndims)


class AffineCoupling(Coupling):
    r"""A `Coupling` with the transformer `Affine` or `Additive`.

    With the mask `b` and `c` channels in the transformed half, the network maps `b * z` to `2c`
    channels: the shift `t`, and the argument of tanh in the log scale `s = scale * tanh(.)`:

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
          network: as in `Coupling`. Its output is [B, H, W, 2c], first `t`, then the argument of
            tanh; [B, H, W, c] without `use_scale`.
          use_scale: `False` gives the additive coupling of NICE: `s = 0`, a log det of zero.
          scale: the trainable scale of tanh, a scalar variable, or its initial value, by default 1.
          mask, conditional_event_shape, event_ndims, dtype, validate_args, name: as in `Coupling`.

        Raises:
          TypeError, ValueError: if `scale` does not fit, or as in `Coupling`.
        """
        parameters = dict(locals())
        expected = f"{name}: expected a scale only with use_scale=True"
        validation.require(use_scale or scale is None, expected, scale)
        scale = 1.0 if scale is None else scale
        with tf.name_scope(name):
            transformer = Affine(scale, dtype) if use_scale else Additive()
        # A copy shares the variable, as it shares the network.
        parameters["scale"] = getattr(transformer, "scale", None)
        super().__init__(
            mask,
            network,
            transformer,
            conditional_event_shape=conditional_event_shape,
            event_ndims=event_ndims,
            dtype=dtype,
            validate_args=validate_args,
            parameters=parameters,
            name=name,
        )

    def get_config(self) -> dict[str, Any]:
        """Returns constructor arguments that make an equal bijector with new variables."""
        scale = self.transformer.get_config().get("scale")
        return {**super().get_config(), "scale": scale}

    @property
    def scale(self) -> keras.Variable | None:
        """The learned scale of tanh; `None` for an additive coupling."""
        return getattr(self.transformer, "scale", None)


def real_nvp_coupling(
    num_masked: int | None = None,
    fraction_masked: float | None = None,
    shift_and_log_scale_fn: Callable[..., Any] | None = None,
    bijector_fn: Callable[..., Any] | None = None,
    **options: Any,
) -> Coupling:
    r"""Returns `tfb.RealNVP` in one pass: a coupling of vectors [..., D] by a function of your own.

    With d elements kept and D - d changed,

    ```
    shift, log_scale = shift_and_log_scale_fn(z[kept], D - d)
    forward (latent -> data):  x[kept] = z[kept],  x[changed] = z[changed] * exp(log_scale) + shift
    ```

    or, for another map, `x[changed] = bijector_fn(z[kept], D - d).forward(z[changed])`.

    Arguments and densities are those of `tfb.RealNVP`, but a value and its log det take one call of
    the function, where `tfb.RealNVP` calls it twice in `log_prob`. The function gets the kept
    elements as [B, d], with all leading dimensions as one.

    All variables of a function that is a Keras layer or a `tf.Module` are variables of the
    coupling, and the trainable variables that any other function reads in its first call: of
    `tfb.real_nvp_default_template`, or of the networks that a Python function calls. To freeze or
    save a network, pass it as a Keras layer.

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
      num_masked: number of first elements that are kept; negative: of last elements.
      fraction_masked: in place of `num_masked`, a share of D in (-1, 1), rounded to a number.
      shift_and_log_scale_fn: function from kept elements [B, d] and the number D - d to shift and
        log scale, [B, D - d] or of a shape that broadcasts; `None` stands for zeros. Or a Keras
        layer from [B, d] to the two.
      bijector_fn: in place of `shift_and_log_scale_fn`, a function of the same arguments that
        returns a `tfb.Bijector` of vectors [B, D - d].
      **options: `conditional_event_shape`, `dtype`, `validate_args` and `name`, as in `Coupling`. A
        condition goes to the function's argument `conditional_input`.

    Raises:
      TypeError, ValueError: if an argument is missing, out of range or not a function, or if not
        exactly one of two alternatives is given.

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, sections 3.2 and 3.3.
    """
    masked = [x for x in (num_masked, fraction_masked) if x is not None]
    functions = [f for f in (shift_and_log_scale_fn, bijector_fn) if f is not None]
    expected = "real_nvp_coupling: expected one of num_masked and fraction_masked, and one function"
    validation.require(len(masked) == len(functions) == 1, expected, (masked, functions))
    expected = "real_nvp_coupling: expected num_masked of at least 1 or fraction_masked below 1"
    is_share = fraction_masked is not None
    validation.require((abs(masked[0]) < 1) == is_share, f"{expected}, or minus these", masked[0])
    mask = ChannelMask(int(masked[0] < 0), num_first=masked[0])
    return Coupling(mask, functions[0], event_ndims=1, **options)


def takes_condition(network: Callable[..., tf.Tensor]) -> bool:
    """Returns whether a network takes `conditional_input`; a declared shape of `None` means no."""
    has_argument = "conditional_input" in _arguments(network)
    return has_argument and getattr(network, "conditional_event_shape", ()) is not None


def _arguments(network: Callable[..., tf.Tensor]) -> Mapping[str, Any]:
    function = network.call if isinstance(network, keras.layers.Layer) else network
    return inspect.signature(function).parameters


class _NetworkCondition(ConditionSpec):
    """The condition of a network; images with fewer channels are squeezed."""

    def _fits(self, shape: tf.TensorShape) -> bool:
        if self.event_ndims == 3 and shape.rank == 3 and shape[-1]:
            *sides, channels = shape
            while channels < self.event_shape[-1]:
                channels *= 4
                sides = [None if side is None else side // 2 for side in sides]
            shape = tf.TensorShape([*sides, channels])
        return super()._fits(shape)

    def of_network(self, condition: tf.Tensor) -> tf.Tensor:
        """Returns the condition as the network takes it, [B, ...]."""
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
