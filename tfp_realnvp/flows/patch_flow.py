"""Flows of patches, such as Jet."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfp_realnvp.bijectors.masks import PATTERNS, ChannelMask, Mask, SpatialMask
from tfp_realnvp.bijectors.squeeze import Squeeze
from tfp_realnvp.flows.coupling_layer import ConditionShape, Layer
from tfp_realnvp.flows.image_flow import ImageFlow, checked_image_shape, image_flow
from tfp_realnvp.internal import validation


def patch_flow(
    image_shape: Sequence[int],
    patch_size: int,
    masks: Sequence[Mask],
    layer: Layer,
    *,
    dtype: Any = tf.float32,
    name: str = "patch_flow",
    **options: Any,
) -> ImageFlow:
    """Composes a flow of one scale, with one coupling per mask. Each patch becomes one position.

    Nothing is factored out. Images must have the height and width of `image_shape`.

    #### Example

    >>> import tfp_realnvp as tfr
    >>> network_fn = tfr.network_of(tfr.VisionTransformer, num_blocks=1, num_heads=2)
    >>> layer = tfr.coupling_layer(network_fn, 8, transformer='sigmoid_affine')
    >>> masks = [tfr.ChannelMask(), tfr.SpatialMask('vertical_stripes')]
    >>> tfr.patch_flow((8, 8, 1), 2, masks, layer, pixels=tfr.PixelLogit(None)).has_fixed_size
    True

    Args:
      image_shape: (height, width, channels).
      patch_size: side of a patch in pixels. For `masks`, each patch is one position.
      masks: masks of all couplings, from data to latents.
      layer: function that makes a layer, such as a `coupling_layer`.
      dtype, name, **options: arguments of `image_flow`.

    Raises:
      ValueError: if height or width is not divisible by `patch_size` (with a `SpatialMask`, by `2 *
        patch_size`), or an argument is out of range or has no effect.
      TypeError: if an argument has a wrong type.
    """
    height, width, channels = image_shape = checked_image_shape(image_shape, name)
    patch_size = validation.count(patch_size, "patch_size", 1, name)
    validation.require(len(masks) > 0, f"{name}: expected at least one mask", masks)
    divisor = patch_size * (2 if any(isinstance(mask, SpatialMask) for mask in masks) else 1)
    fits = all(side is not None and side % divisor == 0 for side in (height, width))
    expected = f"{name}: expected a known height and width divisible by {divisor}, for these masks"
    validation.require(fits, f"{expected} and patch_size={patch_size}", image_shape)

    def layers(condition_shape: ConditionShape) -> list[tfb.Bijector]:
        if condition_shape is not None and len(condition_shape) == 3:
            is_power = patch_size & (patch_size - 1) == 0
            expected = f"{name}: expected a patch_size of 2ⁿ, because the condition is an image"
            validation.require(is_power, expected, patch_size)
            condition_shape = None, None, condition_shape[-1] * patch_size**2
        squeeze = [Squeeze(patch_size, "plain", dtype=dtype)] if patch_size > 1 else []
        shape = height // patch_size, width // patch_size, channels * patch_size**2
        of_all = {"condition_shape": condition_shape, "dtype": dtype}
        bijectors = [*map(tfb.Invert, squeeze)]
        for i, mask in enumerate(masks):
            bijectors += layer(mask, shape, f"patches{i}", **of_all)
        return [*bijectors, *squeeze]

    return image_flow(image_shape, layers, has_fixed_size=True, dtype=dtype, name=name, **options)


def jet_masks(num_couplings: int, channels: int) -> list[Mask]:
    """Returns Jet's masks: one spatial mask after every four channel masks with permutations."""
    spatial = itertools.cycle(SpatialMask(*kind) for kind in itertools.product(PATTERNS, (0, 1)))
    # Every process gets the same permutations: NumPy never changes `RandomState`.
    return [
        next(spatial)
        if i % 5 == 4
        else ChannelMask(permutation=np.random.RandomState(i).permutation(channels).tolist())
        for i in range(num_couplings)
    ]
