"""The architecture of Jet: couplings of patches."""

from __future__ import annotations

import itertools

import numpy as np
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.architecture import ImageArchitecture
from tfp_realnvp.bijectors.coupling_layers import ConditionShape, coupling_layers
from tfp_realnvp.bijectors.flow_chain import FlowChain
from tfp_realnvp.bijectors.masks import ChannelMask, Mask, SpatialMask
from tfp_realnvp.bijectors.squeeze import Squeeze

__all__ = ["jet_masks", "patch_flow"]

tfb = tfp.bijectors


def patch_flow(architecture: ImageArchitecture, condition_shape: ConditionShape) -> FlowChain:
    """Returns a flow of one scale, with a coupling for each of `architecture.masks`.

    Args:
      architecture: the options.
      condition_shape: shape of an embedded condition, for each image; or `None`.
    """
    height, width, channels = architecture.image_shape
    patch_size, dtype = architecture.patch_size, architecture.dtype
    if condition_shape is not None and len(condition_shape) == 3:
        condition_shape = None, None, condition_shape[-1] * patch_size**2
    squeeze = [Squeeze(patch_size, "plain", dtype=dtype)] if patch_size > 1 else []
    couplings = coupling_layers(
        architecture,
        architecture.masks,
        channels * patch_size**2,
        architecture.num_filters,
        condition_shape,
        name="patches",
        positions=(height // patch_size, width // patch_size),
        **({"num_heads": architecture.attention} if architecture.attention else {}),
    )
    return FlowChain([*map(tfb.Invert, squeeze), *couplings, *squeeze], dtype=dtype, name="patches")


def jet_masks(num_couplings: int, channels: int) -> list[Mask]:
    """Returns Jet's masks: four of permuted channels, then a spatial one, and so on.

    Args:
      num_couplings: number of masks.
      channels: number of channels of a patch.
    """
    patterns = ("checkerboard", "vertical_stripes", "horizontal_stripes")
    spatial = itertools.cycle(SpatialMask(*kind) for kind in itertools.product(patterns, (0, 1)))
    # The permutations are the same in each process: NumPy never changes `RandomState`.
    return [
        next(spatial)
        if i % 5 == 4
        else ChannelMask(permutation=np.random.RandomState(i).permutation(channels).tolist())
        for i in range(num_couplings)
    ]
