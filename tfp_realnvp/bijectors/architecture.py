"""The options of whole flows: their tables, and the architectures that follow from them."""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp.bijectors.flow_chain import RECOMPUTE_APPLIES
from tfp_realnvp.bijectors.masks import CheckerboardMask, Mask, SpatialMask
from tfp_realnvp.bijectors.options import (
    Option,
    Options,
    check_choice,
    check_flag,
    check_integer,
    resolve,
)
from tfp_realnvp.bijectors.transformers import (
    Additive,
    Affine,
    LogisticMixture,
    RationalQuadraticSpline,
    SigmoidAffine,
    Transformer,
    TransformerFn,
)
from tfp_realnvp.condition_spec import ConditionSpec, checked_condition_shape
from tfp_realnvp.internal import validation
from tfp_realnvp.networks import ConvResNet, DenseResNet, VisionTransformer

__all__ = ["Architecture", "ImageArchitecture", "NetworkFn", "VectorArchitecture"]

NetworkFn = Callable[..., Callable[..., tf.Tensor]]
_Architecture = TypeVar("_Architecture", bound="Architecture")

# A name stands for these values, whatever the defaults of the parts are: a model that was saved
# with the name stays what it is.
_TRANSFORMERS: dict[str, Callable[[], Transformer]] = {
    "affine": Affine,
    "sigmoid_affine": SigmoidAffine,
    "additive": Additive,
    "rational_quadratic_spline": lambda: RationalQuadraticSpline(
        num_bins=8, bound=8.0, min_bin_size=1e-3, min_slope=1e-3
    ),
    "logistic_mixture": lambda: LogisticMixture(
        num_components=8, max_log_scale=5.0, max_log_factor=3.0
    ),
}
_CONV_RES_NET = {"num_heads": 0, "output_scale": 0.1, "momentum": 0.9, "epsilon": 1e-4}


def _has_condition(options: Options) -> bool:
    return options.conditional_event_shape is not None or options.num_classes is not None


def _is_embedded(options: Options) -> bool:
    shape = options.conditional_event_shape
    return options.num_classes is not None or (shape is not None and len(shape) == 1)


def _has_default_network(options: Options) -> bool:
    return options.network_fn is None


def _has_batch_norm(options: Options) -> bool:
    return options.normalization == "batch"


def _check_condition_shape(value: Any, caller: str, name: str) -> Any:
    del caller, name
    if value is not None:
        checked_condition_shape(value)
    return value


def _check_network_fn(value: Any, caller: str, name: str) -> Any:
    if value is not None and not callable(value):
        raise TypeError(f"{caller}: expected a function as {name}, got {value!r}.")
    return value


def _check_transformer(value: Any, caller: str, name: str) -> Any:
    return value if callable(value) else check_choice(*_TRANSFORMERS)(value, caller, name)


def _check_activation(value: Any, caller: str, name: str) -> Any:
    expected = f"{caller}: expected the name of an {name}"
    validation.require(isinstance(value, str), expected, value, TypeError)
    return value


def _check_momentum(value: Any, caller: str, name: str) -> Any:
    del name
    return validation.momentum(value, caller)


def _options(
    *before: Option, num_couplings: Option, default_num_blocks: int, last: Sequence[Option]
) -> tuple[Option, ...]:
    """Returns a table of options, those of all flows between those of one."""
    return (
        *before,
        num_couplings,
        Option("num_filters", check_integer(1)),
        Option("network_fn", _check_network_fn),
        Option(
            "num_blocks",
            check_integer(0),
            default_num_blocks,
            _has_default_network,
            "with the default network",
        ),
        Option("normalization", check_choice("batch", "actnorm", None)),
        Option("momentum", _check_momentum, 0.9, _has_batch_norm, "with normalization='batch'"),
        Option(
            "use_scale",
            check_flag,
            True,
            lambda options: options.transformer is None,
            "without a transformer",
            lambda options: options.transformer != "additive",
        ),
        Option(
            "transformer",
            _check_transformer,
            lambda options: "affine" if options.use_scale else "additive",
        ),
        Option("conditional_event_shape", _check_condition_shape),
        Option("num_classes"),
        Option("condition_dropout", applies=_has_condition, when="with a condition"),
        Option(
            "embedding_size",
            check_integer(1),
            64,
            _is_embedded,
            "with labels or vectors as condition",
        ),
        *last,
        Option("network_dtype"),
        Option("recompute", check_flag, when=RECOMPUTE_APPLIES),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(abc.ABC):
    """The options that determine the networks and statistics of a flow.

    Flows of equal architectures can share their networks. The attributes have the names of the
    options, which `RealNVPImage` and `RealNVPVector` document, but for the `condition`. A subclass
    also has an attribute `mixing`, the mixing of channels before each coupling: `'lu'`,
    `'permutation'` or `None`.

    Attributes:
      options: the table of the options, also of those that do not determine networks: the check and
        the default of each, and when it applies.
      condition: what the flow is conditional on; `None` without a condition.

    Raises:
      ValueError: if options do not fit together.
      TypeError: if `dtype` is not float32 or float64.
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
    options: ClassVar[tuple[Option, ...]]

    def __post_init__(self) -> None:
        self._set("dtype", validation.float_dtype(self.dtype, self.flow_name))
        if self.network_dtype is None:
            is_double = self.dtype == tf.float64
            policy = "float64" if is_double else keras.config.dtype_policy().name
            self._set("network_dtype", policy)

    @classmethod
    def resolve(cls, arguments: Mapping[str, Any], *, strict: bool = True) -> dict[str, Any]:
        """Returns the values of all options of a flow; see `options.resolve`.

        Args:
          arguments: the constructor arguments of the flow.
          strict: whether an option without effect is an error; otherwise it is left out.
        """
        return resolve(cls.options, arguments, cls.flow_name, strict=strict)

    @classmethod
    def of(cls: type[_Architecture], options: Mapping[str, Any], dtype: Any) -> _Architecture:
        """Returns the architecture of a flow with these options, the result of `resolve`."""
        names = {field.name for field in dataclasses.fields(cls)}
        condition = None
        shape, num_classes = options["conditional_event_shape"], options["num_classes"]
        if shape is not None or num_classes is not None:
            condition = ConditionSpec(shape, num_classes, options["condition_dropout"])
        values = {name: value for name, value in options.items() if name in names}
        return cls(**values, condition=condition, dtype=dtype)

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
            return Affine(1.0, self.dtype)
        make = self.transformer if callable(self.transformer) else _TRANSFORMERS[self.transformer]
        return make()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def _has_several_scales(options: Options) -> bool:
    return options.num_scales > 1


def _has_masks(options: Options) -> bool:
    return options.masks is not None


def _has_no_masks(options: Options) -> bool:
    return options.masks is None


def _check_masks(value: Any, caller: str, name: str) -> tuple[Mask, ...] | None:
    if value is None:
        return None
    is_list = isinstance(value, Sequence) and len(value) > 0
    are_masks = is_list and all(isinstance(mask, Mask) for mask in value)
    validation.require(are_masks, f"{caller}: expected a list of {name}", value, TypeError)
    return tuple(value)


def _check_growth(value: Any, caller: str, name: str) -> Any:
    expected = f"{caller}: expected a positive {name}"
    return validation.real(value, lambda x: 0 < x < math.inf, expected)


_SEVERAL_SCALES = "with several scales"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageArchitecture(Architecture):
    """The options of `RealNVPImage`."""

    image_shape: Sequence[int | None]
    num_scales: int
    num_channel_couplings: int
    filter_growth: float
    invertible_conv: bool
    split_prior: bool
    attention: int
    masks: Sequence[Mask] | None
    patch_size: int

    flow_name: ClassVar[str] = "RealNVPImage"
    event_ndims: ClassVar[int] = 3
    options: ClassVar[tuple[Option, ...]] = _options(
        Option("image_shape", lambda value, caller, name: checked_image_shape(value, caller)),
        Option("masks", _check_masks),
        Option("patch_size", check_integer(1), 1, _has_masks, "with masks", 1),
        Option(
            "num_scales",
            check_integer(1),
            lambda options: _default_num_scales(options.image_shape, "RealNVPImage"),
            _has_no_masks,
            "without masks",
            1,
        ),
        num_couplings=Option(
            "num_couplings",
            check_integer(1),
            3,
            _has_no_masks,
            "without masks",
            lambda options: len(options.masks),
        ),
        default_num_blocks=4,
        last=[
            Option(
                "num_channel_couplings",
                check_integer(0),
                lambda options: options.num_couplings,
                _has_several_scales,
                _SEVERAL_SCALES,
                0,
            ),
            Option("filter_growth", _check_growth, 2.0, _has_several_scales, _SEVERAL_SCALES, 1.0),
            Option("split_prior", check_flag, False, _has_several_scales, _SEVERAL_SCALES, False),
            Option(
                "attention",
                check_integer(0),
                lambda options: 8 if _has_masks(options) and _has_default_network(options) else 0,
                lambda options: _has_masks(options) or _has_several_scales(options),
                f"{_SEVERAL_SCALES}, or with masks",
                0,
            ),
            Option("invertible_conv", check_flag),
            Option("alpha"),
            Option(
                "scale_pixels",
                check_flag,
                False,
                lambda options: options.alpha is None,
                "with alpha=None",
                False,
            ),
            Option(
                "num_values",
                check_integer(2),
                256,
                lambda options: options.alpha is not None or options.scale_pixels,
                "with an alpha or scale_pixels",
            ),
        ],
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.masks is not None:
            self._check_patches()
        sides = [side for side in self.image_shape[:2] if side is not None]
        if self.num_scales > max_num_scales(sides):
            raise ValueError(
                f"{self.flow_name}: expected a height and width that can be halved "
                f"{self.num_scales - 1} times to at least 2, for num_scales={self.num_scales}, got "
                f"image_shape {self.image_shape}."
            )

    def _check_patches(self) -> None:
        """Checks what couplings of patches need."""
        if self.network_fn is None and self.attention < 1:
            raise ValueError(
                f"{self.flow_name}: expected attention of at least 1 with masks, the heads of a "
                f"VisionTransformer, got {self.attention}; a network_fn gives other networks."
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
        options = {"checkerboard_parity": parity, **_CONV_RES_NET, **kwargs}
        return ConvResNet(output_channels, self.num_blocks, **options)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorArchitecture(Architecture):
    """The options of `RealNVPVector`."""

    event_size: int
    mixing: str | None
    activation: str | None

    flow_name: ClassVar[str] = "RealNVPVector"
    event_ndims: ClassVar[int] = 1
    options: ClassVar[tuple[Option, ...]] = _options(
        Option("event_size", check_integer(1)),
        num_couplings=Option("num_couplings", check_integer(1)),
        default_num_blocks=1,
        last=[
            Option(
                "activation",
                _check_activation,
                "tanh",
                _has_default_network,
                "with the default network",
            ),
            Option(
                "mixing",
                check_choice("lu", "permutation", None),
                applies=lambda options: options.event_size > 1 or options.mixing != "permutation",
                when="with several elements, or 'lu'",
            ),
            Option("standardization"),
        ],
    )

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
