"""The multi-scale architecture: the sequence of couplings, squeezes and factor-outs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.coupling_layers import CouplingLayers, NetworkFn
from tfp_realnvp.bijectors.factor_out import FactorOut
from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.bijectors.flow_chain import FlowChain
from tfp_realnvp.bijectors.masks import ChannelMask, CheckerboardMask, Mask
from tfp_realnvp.bijectors.squeeze import Squeeze
from tfp_realnvp.bijectors.transformers import TransformerFn
from tfp_realnvp.internal import validation
from tfp_realnvp.networks import ConvResNet, ShallowConv

__all__ = [
    "MultiScaleBuilder",
    "check_num_scales",
    "checked_image_shape",
    "default_num_scales",
    "max_num_scales",
    "shallow_conv",
]

tfb = tfp.bijectors


class MultiScaleBuilder:
    """Builds the flow between latents and logits, scale by scale."""

    def __init__(
        self,
        image_shape: tuple[int | None, int | None, int],
        num_scales: int,
        num_blocks: int,
        num_filters: int,
        num_couplings: int,
        num_channel_couplings: int,
        filter_growth: float,
        normalization: str | None,
        momentum: float,
        use_scale: bool,
        transformer: str | TransformerFn | None,
        invertible_conv: bool,
        split_prior: bool,
        attention: int,
        network_fn: NetworkFn | None,
        network_dtype: str,
        dtype: tf.DType,
        condition_shape: tuple[int | None, ...] | None = None,
    ) -> None:
        self._channels = image_shape[-1]
        self._num_scales = num_scales
        self._num_blocks = num_blocks
        self._num_filters = num_filters
        self._num_couplings = num_couplings
        self._num_channel_couplings = num_channel_couplings
        self._filter_growth = filter_growth
        self._split_prior = split_prior
        self._attention = attention
        self._dtype = dtype
        # Of a condition as the networks of the first scale get it.
        self._condition_shape = condition_shape
        self._layers = CouplingLayers(
            network_fn=network_fn or self._conv_resnet,
            network_dtype=network_dtype,
            normalization=normalization,
            momentum=momentum,
            use_scale=use_scale,
            transformer=transformer,
            mixing="lu" if invertible_conv else None,
            event_ndims=3,
            dtype=dtype,
        )

    def build(self) -> FlowChain:
        """Returns the flow, with its networks."""
        return self._scale(0)

    def _scale(self, index: int) -> FlowChain:
        name = f"scale{index}"
        dtype = self._dtype
        channels = self._channels * 2**index
        is_last = index == self._num_scales - 1
        masks = [CheckerboardMask(i % 2) for i in range(self._num_couplings + is_last)]
        checkerboard = self._couplings(masks, channels, index, f"{name}_checkerboard")
        if is_last:
            return FlowChain(checkerboard, dtype=dtype, name=name)
        masks = [ChannelMask(i % 2) for i in range(self._num_channel_couplings)]
        channelwise = self._couplings(masks, 4 * channels, index + 1, f"{name}_channel")
        following = FactorOut(self._scale(index + 1), dtype=dtype, name=f"{name}_factor_out")
        prior = self._prior(2 * channels, index + 1, f"{name}_prior") if self._split_prior else []
        plain = Squeeze(dtype=dtype)
        factor_out = Squeeze(order="factor_out", dtype=dtype)
        return FlowChain(
            [
                *checkerboard,
                # Squeezed, restored, and squeezed again in another order, as in the authors' code:
                # so the half that goes on is a checkerboard of the image.
                tfb.Invert(plain),
                *channelwise,
                plain,
                tfb.Invert(factor_out),
                *prior,
                following,
                factor_out,
            ],
            dtype=dtype,
            name=name,
        )

    def _couplings(
        self, masks: Sequence[Mask], channels: int, halvings: int, name: str
    ) -> list[FlowBijector]:
        filters, condition_shape = self._filters(halvings), self._condition_shape_after(halvings)
        layers = self._with_attention(self._layers, halvings)
        return layers.sequence(masks, channels, filters, condition_shape, name)

    def _prior(self, channels: int, halvings: int, name: str) -> list[FlowBijector]:
        """Returns the coupling of a half that is factored out, given the half that goes on."""
        filters, condition_shape = self._filters(halvings), self._condition_shape_after(halvings)
        affine = {"network_fn": shallow_conv, "transformer": None, "use_scale": True}
        layers = self._with_attention(dataclasses.replace(self._layers, **affine), halvings)
        return [layers.coupling(ChannelMask(0), 2 * channels, filters, condition_shape, name)]

    def _with_attention(self, layers: CouplingLayers, halvings: int) -> CouplingLayers:
        if not (self._attention and halvings):
            return layers
        network_fn = functools.partial(layers.network_fn, num_heads=self._attention)
        return dataclasses.replace(layers, network_fn=network_fn)

    def _filters(self, halvings: int) -> int:
        return round(self._num_filters * self._filter_growth**halvings)

    def _condition_shape_after(self, halvings: int) -> tuple[int | None, ...] | None:
        """Returns the shape of a condition at a scale; images are squeezed as often as halved."""
        if self._condition_shape is None or len(self._condition_shape) == 1:
            return self._condition_shape
        return None, None, self._condition_shape[-1] * 4**halvings

    def _conv_resnet(
        self, *, mask: Mask, input_channels: int, output_channels: int, **kwargs: Any
    ) -> ConvResNet:
        del input_channels
        parity = mask.parity if isinstance(mask, CheckerboardMask) else None
        return ConvResNet(output_channels, self._num_blocks, checkerboard_parity=parity, **kwargs)


@keras.saving.register_keras_serializable(package="tfp_realnvp")
def shallow_conv(
    *,
    mask: Mask,
    input_channels: int,
    output_channels: int,
    **kwargs: Any,
) -> ShallowConv:
    """Returns the network of a coupling of `RealNVPImage.compact`: its `network_fn`."""
    del input_channels
    parity = mask.parity if isinstance(mask, CheckerboardMask) else None
    return ShallowConv(output_channels, checkerboard_parity=parity, **kwargs)


def checked_image_shape(
    image_shape: Sequence[int | None], name: str
) -> tuple[int | None, int | None, int]:
    """Returns (height, width, channels), or raises `ValueError`."""
    expected = f"{name}: expected an image_shape (height, width, channels)"
    if not isinstance(image_shape, (Sequence, np.ndarray, tf.TensorShape)):
        raise TypeError(f"{expected}, got {image_shape!r}.")
    shape = tuple(image_shape)
    if len(shape) != 3 or shape[-1] is None:
        raise ValueError(f"{expected}, got {image_shape!r}.")
    expected = f"{expected}, got {image_shape!r}: expected positive sizes"
    return tuple(None if size is None else validation.integer(size, 1, expected) for size in shape)


def default_num_scales(image_shape: tuple[int | None, int | None, int], name: str) -> int:
    """Returns the number of scales of an image; raises `ValueError` if its size is unknown."""
    if None in image_shape:
        raise ValueError(
            f"{name}: expected num_scales for images of unknown size, {image_shape}, got None."
        )
    num_scales, side = 1, math.gcd(*image_shape[:2])
    # The recursion ends when the input of the last scale is 4 × 4 (section 4.1); a side that is not
    # 4 times a power of 2 ends at the last one above that can be halved.
    while side % 2 == 0 and min(image_shape[:2]) // 2**num_scales >= 4:
        num_scales, side = num_scales + 1, side // 2
    return num_scales


def max_num_scales(sides: Sequence[int]) -> int:
    """Returns how many scales images of such sides can have; 64 if none is known."""
    num_scales = 0
    while num_scales < 64 and all(
        side % 2**num_scales == 0 and side // 2**num_scales >= 2 for side in sides
    ):
        num_scales += 1
    return num_scales


def check_num_scales(
    num_scales: int, image_shape: tuple[int | None, int | None, int], name: str
) -> None:
    """Raises `ValueError` if an image cannot be halved that often."""
    sides = [side for side in image_shape[:2] if side is not None]
    if num_scales > max_num_scales(sides):
        raise ValueError(
            f"{name}: expected a height and width that can be halved {num_scales - 1} times to at "
            f"least 2, for num_scales={num_scales}, got image_shape {image_shape}."
        )
