"""The options of whole flows: each is a field here, with its check."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp.bijectors.masks import CheckerboardMask, Mask, SpatialMask
from tfp_realnvp.bijectors.transformers import (
    Additive,
    Affine,
    LogisticMixture,
    RationalQuadraticSpline,
    SigmoidAffine,
    Transformer,
    TransformerFn,
)
from tfp_realnvp.internal import validation
from tfp_realnvp.networks import ConditionSpec, ConvResNet, DenseResNet, VisionTransformer

__all__ = ["Architecture", "ImageArchitecture", "NetworkFn", "VectorArchitecture"]

NetworkFn = Callable[..., Callable[..., tf.Tensor]]
_Architecture = TypeVar("_Architecture", bound="Architecture")

_TRANSFORMERS: dict[str, Callable[..., Transformer]] = {
    "affine": Affine,
    "sigmoid_affine": SigmoidAffine,
    "additive": Additive,
    "rational_quadratic_spline": RationalQuadraticSpline,
    "logistic_mixture": LogisticMixture,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(abc.ABC):
    """The options that determine the networks and statistics of a flow.

    Flows of equal architectures can share their networks. An option that has no effect beside the
    others is an error. `RealNVPImage` and `RealNVPVector` document the options. A subclass also has
    an attribute `mixing`, the mixing of channels before each coupling: `'lu'`, `'permutation'` or
    `None`.

    Attributes:
      num_couplings: number of couplings; for images, of checkerboard couplings in each scale.
      num_filters: width of the networks.
      num_blocks: residual blocks of the default network; `None` with a `network_fn`.
      normalization: `'batch'`, `'actnorm'` or `None`.
      momentum: momentum of batch normalization; `None` without batch normalization.
      transformer: a name, or a function that returns a new `Transformer`.
      network_fn: function that returns a network; `None` for the default network.
      network_dtype: name of a Keras dtype policy.
      condition: what the flow is conditional on; `None` without a condition.
      embedding_size: length of the embedding of labels or vectors; `None` without them.
      dtype: `tf.float32` or `tf.float64`.

    Raises:
      ValueError: if an option is out of range, or has no effect.
      TypeError: if an option has a wrong type.
    """

    num_couplings: int
    num_filters: int
    num_blocks: int | None
    normalization: str | None
    momentum: float | None
    transformer: str | TransformerFn
    network_fn: NetworkFn | None
    network_dtype: str | None
    condition: ConditionSpec | None
    embedding_size: int | None
    dtype: tf.DType

    flow_name: ClassVar[str]
    event_ndims: ClassVar[int]
    default_num_blocks: ClassVar[int]

    def __post_init__(self) -> None:
        self._integer("num_couplings", 1)
        self._integer("num_filters", 1)
        self._choice("normalization", ("batch", "actnorm", None))
        if not callable(self.transformer):
            self._choice("transformer", tuple(_TRANSFORMERS))
        if self.network_fn is not None and not callable(self.network_fn):
            raise TypeError(
                f"{self.flow_name}: expected a function as network_fn, got {self.network_fn!r}."
            )
        self._set("dtype", validation.float_dtype(self.dtype, self.flow_name))
        if self.network_dtype is None:
            is_double = self.dtype == tf.float64
            policy = "float64" if is_double else keras.config.dtype_policy().name
            self._set("network_dtype", policy)
        is_default = self.network_fn is None
        self._default("num_blocks", self.default_num_blocks, is_default, "with the default network")
        if is_default:
            self._integer("num_blocks", 0)
        has_batch_norm = self.normalization == "batch"
        self._default("momentum", 0.9, has_batch_norm, "with normalization='batch'")
        if has_batch_norm:
            validation.momentum(self.momentum, self.flow_name)
        is_embedded = self.condition is not None and self.condition.event_ndims < 3
        self._default("embedding_size", 64, is_embedded, "with labels or vectors as condition")
        if is_embedded:
            self._integer("embedding_size", 1)

    @classmethod
    def of(cls: type[_Architecture], arguments: Mapping[str, Any]) -> _Architecture:
        """Returns the architecture that the constructor arguments of a flow describe."""
        options = {
            field.name: arguments[field.name]
            for field in dataclasses.fields(cls)
            if field.name in arguments
        }
        use_scale, transformer = arguments["use_scale"], arguments["transformer"]
        validation.flag(use_scale, f"{cls.flow_name}: expected a bool as use_scale")
        if transformer is None:
            transformer = "affine" if use_scale else "additive"
        elif not use_scale:
            raise ValueError(
                f"{cls.flow_name}: expected either use_scale=False, which is the transformer "
                f"'additive', or another transformer, got both: {transformer!r}."
            )
        shape, num_classes, dropout = (
            arguments[name]
            for name in ("conditional_event_shape", "num_classes", "condition_dropout")
        )
        condition = None
        if shape is not None or num_classes is not None:
            condition = ConditionSpec(shape, num_classes, dropout)
        elif dropout is not None:
            raise ValueError(
                f"{cls.flow_name}: expected condition_dropout only with a condition, got {dropout}."
            )
        return cls(**{**options, "transformer": transformer, "condition": condition})

    @abc.abstractmethod
    def default_network(
        self, *, mask: Mask, input_channels: int, output_channels: int, **kwargs: Any
    ) -> keras.layers.Layer:
        """Returns a network of the default kind; see `network_fn` of the flows."""

    def network(self, **kwargs: Any) -> Callable[..., tf.Tensor]:
        """Returns the network of a coupling."""
        make = self.network_fn or self.default_network
        return make(**kwargs, dtype=self.network_dtype)

    def new_transformer(self) -> Transformer:
        """Returns a new transformer for a coupling, with its own variables."""
        if self.transformer == "affine":
            return Affine(dtype=self.dtype)
        make = self.transformer if callable(self.transformer) else _TRANSFORMERS[self.transformer]
        return make()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _default(self, name: str, default: Any, applies: bool, when: str) -> None:
        """Sets an option that is `None` to its default; raises if it is set without effect."""
        value = getattr(self, name)
        if value is None and applies:
            self._set(name, default)
        elif value is not None and not applies:
            raise ValueError(f"{self.flow_name}: expected {name} only {when}, got {value!r}.")

    def _integer(self, name: str, at_least: int) -> None:
        expected = f"{self.flow_name}: expected {name} of at least {at_least}"
        self._set(name, validation.integer(getattr(self, name), at_least, expected))

    def _choice(self, name: str, choices: Sequence[str | None]) -> None:
        expected = f"{self.flow_name}: expected a {name}"
        validation.choice(getattr(self, name), choices, expected)

    def _flag(self, name: str) -> None:
        validation.flag(getattr(self, name), f"{self.flow_name}: expected a bool as {name}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageArchitecture(Architecture):
    """The options of `RealNVPImage`.

    Attributes:
      image_shape: (height, width, channels).
      num_scales: number of scales.
      num_channel_couplings: channel-wise couplings of each scale but the last.
      filter_growth: factor by which feature maps grow when the side is halved.
      invertible_conv: whether an `InvertibleConv1x1` comes before each coupling.
      split_prior: whether there is a learned prior of the half that is factored out.
      attention: heads of self-attention in networks that see halved images; 0 for none; with
        `masks`, heads of all networks.
      masks: masks of all couplings, which are on patches; `None` for couplings by scale.
      patch_size: side of the patches.
    """

    image_shape: Sequence[int | None]
    num_scales: int | None
    num_channel_couplings: int | None
    filter_growth: float
    invertible_conv: bool
    split_prior: bool
    attention: int
    masks: Sequence[Mask] | None
    patch_size: int

    flow_name: ClassVar[str] = "RealNVPImage"
    event_ndims: ClassVar[int] = 3
    default_num_blocks: ClassVar[int] = 4

    def __post_init__(self) -> None:
        self._set("image_shape", checked_image_shape(self.image_shape, self.flow_name))
        self._integer("patch_size", 1)
        if self.masks is not None:
            self._check_masks()
        elif self.patch_size > 1:
            expected = f"{self.flow_name}: expected a patch_size only with masks"
            raise ValueError(f"{expected}, got {self.patch_size}.")
        elif self.num_couplings is None:
            self._set("num_couplings", 3)
        super().__post_init__()
        if self.num_scales is None:
            self._set("num_scales", _default_num_scales(self.image_shape, self.flow_name))
        self._integer("num_scales", 1)
        sides = [side for side in self.image_shape[:2] if side is not None]
        if self.num_scales > max_num_scales(sides):
            raise ValueError(
                f"{self.flow_name}: expected a height and width that can be halved "
                f"{self.num_scales - 1} times to at least 2, for num_scales={self.num_scales}, got "
                f"image_shape {self.image_shape}."
            )
        if self.num_channel_couplings is None:
            self._set("num_channel_couplings", self.num_couplings)
        self._integer("num_channel_couplings", 0)
        expected = f"{self.flow_name}: expected a positive filter_growth"
        validation.real(self.filter_growth, lambda x: 0 < x < math.inf, expected)
        self._flag("invertible_conv")
        self._flag("split_prior")
        self._integer("attention", 0)

    def _check_masks(self) -> None:
        """Checks what couplings of patches need, and sets the options that they replace."""
        expected = f"{self.flow_name}: expected a list of masks"
        is_list = isinstance(self.masks, Sequence) and len(self.masks) > 0
        are_masks = is_list and all(isinstance(mask, Mask) for mask in self.masks)
        validation.require(are_masks, expected, self.masks, TypeError)
        self._set("masks", tuple(self.masks))
        replaced: dict[str, Any] = {"num_couplings": len(self.masks), "num_scales": 1}
        replaced |= {"num_channel_couplings": 0, "filter_growth": 2.0, "split_prior": False}
        for name, value in replaced.items():
            self._default(name, value, True, "")
            if getattr(self, name) != value:
                raise ValueError(
                    f"{self.flow_name}: expected {name} only without masks, got "
                    f"{getattr(self, name)!r}."
                )
        has_spatial = any(isinstance(mask, SpatialMask) for mask in self.masks)
        divisor = self.patch_size * (2 if has_spatial else 1)
        if any(side is None or side % divisor for side in self.image_shape[:2]):
            raise ValueError(
                f"{self.flow_name}: expected a known height and width divisible by {divisor}, for "
                f"patch_size={self.patch_size} and these masks, got image_shape {self.image_shape}."
            )
        if self.condition is not None and self.condition.event_ndims == 3:
            is_power = self.patch_size & (self.patch_size - 1) == 0
            expected = f"{self.flow_name}: expected a patch_size of 2ⁿ with images as condition"
            validation.require(is_power, expected, self.patch_size)

    @property
    def mixing(self) -> str | None:
        """`'lu'` for an `InvertibleConv1x1` before each coupling, or `None`."""
        return "lu" if self.invertible_conv else None

    def default_network(
        self, *, mask: Mask, input_channels: int, output_channels: int, **kwargs: Any
    ) -> keras.layers.Layer:
        """Returns the paper's network; with `masks`, a vision transformer."""
        del input_channels
        if self.masks is not None:
            return VisionTransformer(output_channels, self.num_blocks, **kwargs)
        parity = mask.parity if isinstance(mask, CheckerboardMask) else None
        return ConvResNet(output_channels, self.num_blocks, checkerboard_parity=parity, **kwargs)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorArchitecture(Architecture):
    """The options of `RealNVPVector`.

    Attributes:
      event_size: length of the vectors.
      mixing: `'lu'`, `'permutation'` or `None`.
      activation: activation of the default network; `None` with a `network_fn`.
    """

    event_size: int
    mixing: str | None
    activation: str | None

    flow_name: ClassVar[str] = "RealNVPVector"
    event_ndims: ClassVar[int] = 1
    default_num_blocks: ClassVar[int] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._integer("event_size", 1)
        self._choice("mixing", ("lu", "permutation", None))
        is_default = self.network_fn is None
        self._default("activation", "tanh", is_default, "with the default network")
        if is_default:
            expected = f"{self.flow_name}: expected the name of an activation"
            is_name = isinstance(self.activation, str)
            validation.require(is_name, expected, self.activation, TypeError)

    def default_network(self, *, mask: Mask, input_channels: int, **kwargs: Any) -> DenseResNet:
        """Returns a residual network of dense layers."""
        del mask, input_channels
        return DenseResNet(num_blocks=self.num_blocks, activation=self.activation, **kwargs)


def checked_image_shape(
    image_shape: Sequence[int | None], caller: str
) -> tuple[int | None, int | None, int]:
    """Returns (height, width, channels), or raises."""
    expected = f"{caller}: expected an image_shape (height, width, channels)"
    if not isinstance(image_shape, (Sequence, np.ndarray, tf.TensorShape)):
        raise TypeError(f"{expected}, got {image_shape!r}.")
    shape = tuple(image_shape)
    if len(shape) != 3 or shape[-1] is None:
        raise ValueError(f"{expected}, got {image_shape!r}.")
    expected = f"{expected}, got {image_shape!r}: expected positive sizes"
    height, width, channels = (
        None if size is None else validation.integer(size, 1, expected) for size in shape
    )
    return height, width, channels


def max_num_scales(sides: Sequence[int]) -> int:
    """Returns the largest number of scales for images of these sides; 64 if no side is known."""
    num_scales = 0
    while num_scales < 64 and all(
        side % 2**num_scales == 0 and side // 2**num_scales >= 2 for side in sides
    ):
        num_scales += 1
    return num_scales


def num_scales_of(image_shape: tuple[int | None, int | None, int], at_most: int) -> int:
    """Returns `at_most`, or the largest number of scales that the sides of an image allow."""
    sides = [side for side in image_shape[:2] if side is not None]
    return max(1, min(at_most, max_num_scales(sides)))


def _default_num_scales(image_shape: Sequence[int | None], caller: str) -> int:
    if None in image_shape:
        raise ValueError(
            f"{caller}: expected num_scales for images of unknown size, {image_shape}, got None."
        )
    num_scales, side = 1, math.gcd(*image_shape[:2])
    # The recursion ends when the input of the last scale is 4 × 4 (section 4.1). A side that is not
    # 4 times a power of 2 is halved as often as possible without going below 4.
    while side % 2 == 0 and min(image_shape[:2]) // 2**num_scales >= 4:
        num_scales, side = num_scales + 1, side // 2
    return num_scales
