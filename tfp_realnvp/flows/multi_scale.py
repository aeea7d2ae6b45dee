"""The multi-scale architecture: the sequence of couplings, squeezes and factor-outs."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfp_realnvp.bijectors import ChannelMask, CheckerboardMask, FactorOut, FlowChain, Mask, Squeeze
from tfp_realnvp.flows.coupling_layer import ConditionShape, Layer
from tfp_realnvp.flows.image_flow import ImageFlow, checked_image_shape, image_flow
from tfp_realnvp.internal import validation


def multi_scale(
    image_shape: Sequence[int | None],
    num_scales: int,
    layer: Layer,
    *,
    num_couplings: int = 3,
    num_channel_couplings: int | None = None,
    prior: Layer | None = None,
    dtype: Any = tf.float32,
    name: str = "multi_scale",
    **options: Any,
) -> ImageFlow:
    """Composes layers into the multi-scale architecture of section 3.6 of the paper.

    Each scale except the last has checkerboard couplings, a squeeze and channel-wise couplings, and
    factors out half of the dimensions. The last scale has only checkerboard couplings, one more
    than the others.

    #### Example

    The paper's model with splines:

    >>> import tfp_realnvp as tfr
    >>> layer = tfr.coupling_layer(
    ...     tfr.network_of(tfr.ConvResNet, num_blocks=1), 8, filter_growth=2.0,
    ...     transformer='rational_quadratic_spline', normalization='batch')
    >>> flow = tfr.multi_scale((8, 8, 3), 2, layer, pixels=tfr.PixelLogit(0.05))
    >>> flow.num_scales, len([p for p in flow.submodules if isinstance(p, tfr.Coupling)])
    (2, 10)

    Args:
      image_shape: (height, width, channels). Height and width may be `None`.
      num_scales: number of scales.
      layer: function that makes a layer, such as a `coupling_layer`.
      num_couplings: number of checkerboard couplings in each scale; the last scale has one more.
      num_channel_couplings: number of channel-wise couplings in each scale except the last; by
        default `num_couplings`. Only with several scales.
      prior: function that makes a learned prior: a layer that transforms each factored-out half
        given the other half. Only with several scales.
      dtype, name, **options: arguments of `image_flow`.

    Raises:
      ValueError: if the image cannot be squeezed, or an argument is invalid or has no effect.
      TypeError: if an argument has a wrong type.

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.6. The order of the
    squeezes follows the authors' code (tensorflow/models, real_nvp).
    """
    image_shape = checked_image_shape(image_shape, name)
    num_scales = validation.count(num_scales, "num_scales", 1, name)
    num_couplings = validation.count(num_couplings, "num_couplings", 1, name)
    expected = f"{name}: expected image sides that halve to at least 2 for num_scales={num_scales}"
    validation.require(num_scales <= max_num_scales(image_shape), expected, image_shape)
    for option, value in (("num_channel_couplings", num_channel_couplings), ("prior", prior)):
        validation.only(value, option, num_scales > 1, "with several scales", name)
    if num_channel_couplings is None:
        num_channel_couplings = num_couplings
    num_channel = validation.count(num_channel_couplings, "num_channel_couplings", 0, name)
    plain, other_order = (Squeeze(2, order, dtype=dtype) for order in ("plain", "factor_out"))

    def layers(condition_shape: ConditionShape, scale: int = 0) -> list[tfb.Bijector]:
        """Returns the bijectors of one scale and all coarser scales, from data to latents."""

        def made(layer: Layer, part: str, masks: Sequence[Mask], halvings: int) -> Any:
            options = {"halvings": halvings, "condition_shape": condition_shape, "dtype": dtype}
            if condition_shape is not None and len(condition_shape) == 3:
                # A condition image is squeezed like the data.
                options["condition_shape"] = None, None, condition_shape[-1] * 4**halvings
            shape = None, None, image_shape[-1] * 2**scale * 4 ** (halvings - scale)
            bijectors: list[tfb.Bijector] = []
            for i, mask in enumerate(masks):
                bijectors += layer(mask, shape, f"scale{scale}_{part}{i}", **options)
            return bijectors

        is_last = scale == num_scales - 1
        masks = [CheckerboardMask(i % 2) for i in range(num_couplings + is_last)]
        checkerboard = made(layer, "checkerboard", masks, scale)
        if is_last:
            return checkerboard
        masks = [ChannelMask(i % 2) for i in range(num_channel)]
        channelwise = made(layer, "channel", masks, scale + 1)
        coarser = layers(condition_shape, scale + 1)
        coarser = FlowChain(coarser, dtype=dtype, name=f"scale{scale + 1}")
        return [
            *checkerboard,
            # As in the authors' code, the image is squeezed, restored, and squeezed again in
            # another order. The next scale then transforms a checkerboard of the image.
            tfb.Invert(plain),
            *channelwise,
            plain,
            tfb.Invert(other_order),
            *([] if prior is None else made(prior, "prior", [ChannelMask(0)], scale + 1)),
            FactorOut(coarser, dtype=dtype, name=f"scale{scale}_factor_out"),
            other_order,
        ]

    return image_flow(image_shape, layers, num_scales=num_scales, dtype=dtype, name=name, **options)


def max_num_scales(image_shape: Sequence[int | None], least: int = 2) -> int:
    """Returns how many scales are possible if all sides stay whole and at least `least`.

    Returns 0 if the image itself is smaller, and 64 if both sides are unknown.
    """
    sides = [side for side in image_shape[:2] if side is not None]
    return sum(all(side % 2**n == 0 and side >= least * 2**n for side in sides) for n in range(64))
