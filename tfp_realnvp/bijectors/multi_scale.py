"""The multi-scale architecture: the sequence of couplings, squeezes and factor-outs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.architecture import ImageArchitecture
from tfp_realnvp.bijectors.coupling_layers import ConditionShape, coupling, coupling_layers
from tfp_realnvp.bijectors.factor_out import FactorOut
from tfp_realnvp.bijectors.flow_bijector import FlowBijector
from tfp_realnvp.bijectors.flow_chain import FlowChain
from tfp_realnvp.bijectors.masks import ChannelMask, CheckerboardMask, Mask
from tfp_realnvp.bijectors.squeeze import Squeeze
from tfp_realnvp.networks import ShallowConv

__all__ = ["multi_scale_flow", "shallow_conv"]

tfb = tfp.bijectors


def multi_scale_flow(
    architecture: ImageArchitecture, condition_shape: ConditionShape, scale: int = 0
) -> FlowChain:
    """Returns the flow of one scale and all coarser scales, between latents and logits.

    Args:
      architecture: the options.
      condition_shape: shape of an embedded condition, as the networks of the first scale get it.
      scale: index of the scale, 0 for the finest.
    """
    name, dtype = f"scale{scale}", architecture.dtype
    channels = architecture.image_shape[-1] * 2**scale
    is_last = scale == architecture.num_scales - 1

    def options(halvings: int) -> dict[str, Any]:
        """Returns the options of networks whose images were halved `halvings` times."""
        growth = architecture.filter_growth**halvings
        has_attention = architecture.attention and halvings
        return {
            "num_filters": round(architecture.num_filters * growth),
            "condition_shape": _squeezed(condition_shape, halvings),
            **({"num_heads": architecture.attention} if has_attention else {}),
        }

    def couplings(masks: Sequence[Mask], channels: int, halvings: int, kind: str) -> list:
        return coupling_layers(
            architecture, masks, channels, name=f"{name}_{kind}", **options(halvings)
        )

    masks = [CheckerboardMask(i % 2) for i in range(architecture.num_couplings + is_last)]
    checkerboard = couplings(masks, channels, scale, "checkerboard")
    if is_last:
        return FlowChain(checkerboard, dtype=dtype, name=name)
    masks = [ChannelMask(i % 2) for i in range(architecture.num_channel_couplings)]
    channelwise = couplings(masks, 4 * channels, scale + 1, "channel")
    coarser = multi_scale_flow(architecture, condition_shape, scale + 1)
    factor_out = FactorOut(coarser, dtype=dtype, name=f"{name}_factor_out")
    prior = []
    if architecture.split_prior:
        prior = [_prior(architecture, 4 * channels, f"{name}_prior", options(scale + 1))]
    plain = Squeeze(2, "plain", dtype=dtype)
    other_order = Squeeze(2, "factor_out", dtype=dtype)
    return FlowChain(
        [
            *checkerboard,
            # The image is squeezed, restored, and squeezed again in another order, as in the
            # authors' code, so that the half that the next scale transforms is a checkerboard of
            # the image.
            tfb.Invert(plain),
            *channelwise,
            plain,
            tfb.Invert(other_order),
            *prior,
            factor_out,
            other_order,
        ],
        dtype=dtype,
        name=name,
    )


def _prior(
    architecture: ImageArchitecture, channels: int, name: str, options: dict[str, Any]
) -> FlowBijector:
    """Returns the coupling that transforms the factored-out half, given the other half."""
    affine = dataclasses.replace(
        architecture, network_fn=shallow_conv, num_blocks=None, transformer="affine"
    )
    return coupling(affine, ChannelMask(0), channels, name=name, **options)


def _squeezed(condition_shape: ConditionShape, halvings: int) -> ConditionShape:
    """Returns the shape of a condition for networks whose images were halved `halvings` times."""
    if condition_shape is None or len(condition_shape) == 1:
        return condition_shape
    return None, None, condition_shape[-1] * 4**halvings


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
    options = {"checkerboard_parity": parity, "num_heads": 0, **kwargs}
    return ShallowConv(output_channels, **options)
