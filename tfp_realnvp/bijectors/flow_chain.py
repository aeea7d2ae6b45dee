"""Bijectors that apply other bijectors, of this package or of TFP: in a chain, or to one half."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfp_realnvp.bijectors.flow_bijector import FlowBijector, Mapped, Pass, surround_with
from tfp_realnvp.bijectors.invertible_conv1x1 import InvertibleConv1x1, NormalizedConv1x1
from tfp_realnvp.bijectors.normalization import ActNorm
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal import private_api, validation
from tfp_realnvp.networks import ConditionEmbedding


class FlowChain(FlowBijector):
    r"""Composes bijectors as `tfb.Chain` does: `FlowChain([f, g]).forward(x) = f(g(x))`.

    In `forward`, the last bijector takes the latents and the first one returns the data. One pass
    computes the value and the sum of the log dets. All bijectors of this package get `training` and
    `conditional_input`, also within TFP's bijectors; `tfb.Chain` routes arguments by bijector name.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfb = tfp.bijectors
    >>> chain = tfr.FlowChain([tfr.PixelLogit(), tfb.Scale(3.), tfb.Invert(tfr.Squeeze())])
    >>> y, fldj = chain.forward_and_log_det(tf.random.normal([5, 4, 4, 12]))
    >>> y.shape, fldj.shape
    (TensorShape([5, 8, 8, 3]), TensorShape([5]))
    """

    def __init__(
        self,
        bijectors: Sequence[tfb.Bijector],
        *,
        recompute: bool = False,
        event_ndims: int | None = None,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        parameters: dict[str, Any] | None = None,
        name: str = "flow_chain",
    ) -> None:
        """Constructs the composition.

        Args:
          bijectors: bijectors of this package or of TFP, all on [..., H, W, C] or all on [..., D].
          recompute: whether the backward pass recomputes the networks' activations, one coupling at
            a time. This saves memory, but adds a forward pass. Networks must be Keras layers.
          event_ndims: defaults to the `event_ndims` of this package's bijectors, or 3.
          dtype, validate_args, name: as in `FlowBijector`.
          parameters: the constructor arguments of a subclass.

        Raises:
          TypeError, ValueError: if an argument has a wrong type, bijectors differ in dtype or
            `event_ndims`, or `recompute` has no effect.
        """
        arguments = dict(locals())
        del arguments["parameters"]
        arguments["bijectors"] = bijectors = tuple(bijectors)
        dtype, can_recompute = validation.float_dtype(dtype, name), False
        ranks: dict[str, int] = {} if event_ndims is None else {"event_ndims": event_ndims}
        for part in bijectors:
            is_bijector = isinstance(part, tfb.Bijector)
            validation.require(is_bijector, f"{name}: expected bijectors", part, TypeError)
            fits, expected = part.dtype in (None, dtype), f"{name}: expected dtype {dtype.name}"
            validation.require(fits, expected, (part.name, part.dtype), TypeError)
            of_package = [b for b in (part, *part.submodules) if isinstance(b, FlowBijector)]
            can_recompute |= any(getattr(b, "can_recompute", False) for b in of_package)
            if of_package:
                ranks[part.name] = part.forward_min_event_ndims
        expected = f"{name}: expected recompute only with networks that are Keras layers"
        validation.require(can_recompute or not recompute, expected, bijectors)
        expected = f"{name}: expected bijectors with equal event_ndims"
        validation.require(len(set(ranks.values())) <= 1, expected, ranks)
        event_ndims = next(iter(ranks.values()), 3)
        self._bijectors = bijectors
        self._condition_spec = next(filter(None, map(condition_spec_of, bijectors)), None)
        self.accepts_conditional_input = any(map(accepts_conditional_input, bijectors))
        self.recompute = recompute
        super().__init__(
            event_ndims=event_ndims,
            is_constant_jacobian=all(part.is_constant_jacobian for part in bijectors),
            parameters=arguments if parameters is None else parameters,
        )

    @property
    def bijectors(self) -> tuple[tfb.Bijector, ...]:
        """The bijectors. In `forward`, the first bijector returns the data."""
        return tuple(self._bijectors)

    @property
    def condition_embedding(self) -> ConditionEmbedding | None:
        """The embedding of the condition that all layers share; `None` without one."""
        return next((p.embedding for p in self._bijectors if hasattr(p, "embedding")), None)

    def _pass(self, value: tf.Tensor, p: Pass, inverse: bool) -> Mapped:
        p = self._of_parts(value, p)
        # One `add_n` is faster than many additions and their gradients, but requires equal shapes.
        # A log det that is equal for all events is a scalar.
        kinds: tuple[list[tf.Tensor], list[tf.Tensor]] = ([], [])
        for part in self._in_order(_joined(self._bijectors, p.training), inverse):
            value, log_det = call_part(part, value, p, inverse, self.event_ndims)
            kinds[log_det.shape.rank == 0].append(log_det)
        if not any(kinds):
            return value, self._log_det_of_positions(value, 0.0, p)
        return value, functools.reduce(tf.add, [tf.add_n(kind) for kind in kinds if kind])

    _forward_and_log_det = functools.partialmethod(_pass, inverse=False)
    _inverse_and_log_det = functools.partialmethod(_pass, inverse=True)

    def _of_parts(self, value: tf.Tensor, p: Pass) -> Pass:
        return p.but(recompute=True) if self.recompute else p

    def _in_order(self, bijectors: Sequence[Any], inverse: bool) -> Sequence[Any]:
        return bijectors if inverse else bijectors[::-1]

    def _outermost(self, inverse: bool) -> Any:
        """Returns the bijector to apply first, or `super()` if there is none or it is from TFP."""
        first = self._in_order(self._bijectors, inverse)[:1]
        return first[0] if first and isinstance(first[0], FlowBijector) else super()

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        return self._outermost(inverse)._expected_shape(inverse)

    def _assertions(self, value: tf.Tensor, inverse: bool) -> list[tf.Operation]:
        return self._outermost(inverse)._assertions(value, inverse)

    def _event_shape(self, shape: Any, inverse: bool) -> Any:
        hook = "inverse_event_shape" if inverse else "forward_event_shape"
        hook += "" if isinstance(shape, tf.TensorShape) else "_tensor"
        for part in self._in_order(self._bijectors, inverse):
            shape = getattr(part, hook)(shape)
        return shape


class ComposedFlow(FlowChain):
    """A `FlowChain` whose subclasses construct the bijectors from their own arguments."""

    def __init__(
        self, bijectors: Any, event_ndims: int, name: str, options: Any, **attributes: Any
    ) -> None:
        """Constructs the flow; `attributes` are its arguments besides those of `FlowChain`."""
        options = {"recompute": False, "dtype": tf.float32, "validate_args": False, **options}
        parameters = {"bijectors": tuple(bijectors), **attributes, **options, "name": name}
        super().__init__(bijectors, event_ndims=event_ndims, parameters=parameters, **options)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        """Constructs a flow of this class from the bijectors and options of `get_config`."""
        flow = cls.__new__(cls)
        of_parts = next(base for base in cls.__mro__ if ComposedFlow in base.__bases__)
        of_parts.__init__(flow, **config)  # type: ignore[misc]
        return flow

    def copy(self, **overrides: Any) -> Any:
        """Returns a copy that shares the networks.

        Args:
          **overrides: new values of `bijectors`, `name`, `recompute` or `validate_args`.

        Raises:
          TypeError: if `overrides` has other arguments, such as shapes, which networks depend on.
        """
        names = ("bijectors", "name", "recompute", "validate_args")
        validation.known_options(overrides, names, f"{self.name}.copy")
        return self.from_config({**self.parameters, **overrides})

    # Latents have the shape of the data.
    _event_shape = FlowBijector._event_shape


class ConditionalBijector(FlowChain):
    r"""Embeds `conditional_input`, and passes the embedding to all networks of a bijector.

    ```
    forward(x, c) = bijector.forward(x, embedding(c))
    ```

    Leading shapes of x and c broadcast. Condition images must have the data's height and width.
    """

    def __init__(
        self,
        bijector: tfb.Bijector,
        embedding: ConditionEmbedding,
        *,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "conditional_bijector",
    ) -> None:
        """Constructs the bijector from a flow and the layer that embeds its condition."""
        parameters = dict(locals())
        if not embedding.built:
            # Build the embedding last, so that the networks start with the same random weights as
            # in a flow without a condition.
            embedding.build()
        self.bijector, self.embedding = bijector, embedding
        self._track_layers(embedding)
        super().__init__([bijector], dtype=dtype, parameters=parameters, name=name)
        expected = f"{name}: expected a network whose call has an argument `conditional_input`"
        validation.require(self.accepts_conditional_input, expected, bijector)
        expected = f"{name}: expected a condition of vectors or labels for a bijector on vectors"
        fits = embedding.spec.event_ndims <= self.event_ndims
        validation.require(fits, expected, embedding.spec.description)
        self._condition_spec = embedding.spec

    def _of_parts(self, value: tf.Tensor, p: Pass) -> Pass:
        embedded = self.embedding(p.condition)
        if self.embedding.spec.event_ndims == 3:
            sides, expected = embedded.shape[-3:-1], value.shape[-3:-1]
            if not sides.is_compatible_with(expected):
                raise ValueError(
                    f"{self.name}: expected a condition with the height and width of the images, "
                    f"{expected}, got {sides}; "
                    f"`tf.image.resize(condition, {list(expected)})` resizes it."
                )
        p = p.but(condition=embedded)
        if p.guidance is None:
            return p
        missing = tf.broadcast_to(self.embedding.no_condition, tf.shape(embedded))
        missing = tf.ensure_shape(missing, embedded.shape)
        return p.but(no_condition=missing, recompute=False)


class FactorOut(FlowBijector):
    r"""Applies a bijector to the first half of the channels. The second half stays unchanged.

    ```
    (h, z) = split(image);    inverse: concat(bijector.inverse(h), z)
                              forward: concat(bijector.forward(h), z)
    ildj = ildj of the inner bijector at h
    ```

    After `Squeeze(order='factor_out')` the first half of the channels holds a checkerboard of the
    image's pixels. The inner bijector must keep the shape of its input.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> y = tfr.FactorOut(tfp.bijectors.Scale(10.)).forward(tf.ones([1, 1, 4]))
    >>> y.numpy().ravel().tolist()
    [10.0, 10.0, 1.0, 1.0]

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.6, eq. 13 to 16.
    """

    def __init__(
        self,
        bijector: tfb.Bijector,
        *,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "factor_out",
    ) -> None:
        """Constructs the bijector.

        Args:
          bijector: bijector on the first half, [..., H, W, C/2], that keeps the shape.
          dtype, validate_args, name: as in `FlowBijector`.
        """
        parameters = dict(locals())
        self.bijector = bijector
        self._condition_spec = condition_spec_of(bijector)
        self.accepts_conditional_input = accepts_conditional_input(bijector)
        super().__init__(is_constant_jacobian=bijector.is_constant_jacobian, parameters=parameters)

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        if shape[-1] is None or shape[-1] % 2:
            raise ValueError(f"{self.name}: expected an even number of channels, got {shape}.")

    def _pass(self, value: tf.Tensor, p: Pass, inverse: bool) -> Mapped:
        h, z = tf.split(value, 2, axis=-1)
        h, log_det = call_part(self.bijector, h, p, inverse, self.event_ndims)
        return tf.concat([h, z], axis=-1), log_det

    _forward_and_log_det = functools.partialmethod(_pass, inverse=False)
    _inverse_and_log_det = functools.partialmethod(_pass, inverse=True)


def _joined(bijectors: Sequence[Any], training: bool) -> list[Any]:
    """Joins each `ActNorm` with the `InvertibleConv1x1` that directly follows it in `bijectors`.

    In training, an `ActNorm` that this batch may initialize stays alone.
    """
    parts: list[Any] = []
    for bijector in bijectors:
        if parts and type(parts[-1]) is ActNorm and type(bijector) is InvertibleConv1x1:
            is_ready = not training or parts[-1].learned.is_known_to_be_set
            if is_ready and not (parts[-1].validate_args or bijector.validate_args):
                bijector = NormalizedConv1x1(parts.pop(), bijector)
        parts.append(bijector)
    return parts


def call_part(part: Any, value: tf.Tensor, p: Pass, inverse: bool, event_ndims: int) -> Mapped:
    """Applies one bijector of a composition in one direction, and calls the observer."""
    if isinstance(part, private_api.Invert):
        return call_part(part.bijector, value, p, not inverse, event_ndims)
    num_terms = len(p.terms or ())
    if isinstance(part, tfb.Bijector) and not isinstance(part, FlowBijector):
        results = _call_tfp(part, value, p, inverse, event_ndims)
    else:
        results = part._checked_pass(value, p, inverse)
    if p.terms is not None and len(p.terms) == num_terms:
        raise ValueError(
            f"{part.name}: expected a log det with a term for each position of the image. Compose "
            "bijectors by `tfr.FlowChain` instead of `tfb.Chain`. In your own bijector, sum log "
            "dets by the methods `_sum_over_event` and `_log_det_of_positions` of `FlowBijector`."
        )
    if p.observer is not None:
        p.observer(part, *results)
    return results


def _call_tfp(bijector: Any, value: tf.Tensor, p: Pass, inverse: bool, event_ndims: int) -> Mapped:
    direction = "inverse" if inverse else "forward"
    log_det_of = getattr(bijector, f"{direction}_log_det_jacobian")
    # TFP's bijectors cache results by tensor, but the results of our bijectors within them also
    # depend on the context.
    value = tf.identity(value)
    with surround_with(**vars(p.but(terms=None))):
        log_det = log_det_of(value, event_ndims=event_ndims)
        result = getattr(bijector, direction)(value)
    if p.terms is not None and bijector.forward_min_event_ndims <= 1:
        log_dets = log_det_of(value, event_ndims=1)
        p.record(tf.broadcast_to(log_dets, tf.shape(result)[:-1])[..., tf.newaxis])
    return result, tf.broadcast_to(log_det, tf.shape(result)[:-event_ndims])


def outermost_parts(module: Any, kinds: type | tuple[type, ...]) -> Iterator[Any]:
    """Yields each part of certain types in a distribution or bijector, but no parts within it.

    Parts are the constructor arguments and attributes, also within lists and dictionaries. The
    module itself counts as a part.
    """
    # Keys are `id`s, which are unique because the values keep the objects alive.
    seen: dict[int, Any] = {}
    pending = [module]
    while pending:
        part = pending.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        if isinstance(part, kinds):
            yield part
        elif isinstance(part, (list, tuple)):
            pending += reversed(part)
        elif isinstance(part, dict):
            pending += reversed(part.values())
        elif isinstance(part, tf.Module):
            attributes = [v for v in vars(part).values() if isinstance(v, tf.Module)]
            pending += [*attributes, *reversed(getattr(part, "parameters", vars(part)).values())]


def accepts_conditional_input(bijector: tfb.Bijector) -> bool:
    """Returns whether a network of `bijector` takes `conditional_input`."""
    return any(part.accepts_conditional_input for part in outermost_parts(bijector, FlowBijector))


def condition_spec_of(bijector: tfb.Bijector) -> ConditionSpec | None:
    """Returns the condition that the networks of `bijector` declare, or `None`."""
    specs = (part._condition_spec for part in outermost_parts(bijector, FlowBijector))
    return next(filter(None, specs), None)
