"""What the latents of each scale stand for."""

from __future__ import annotations

from typing import Literal

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from numpy.typing import ArrayLike

from tfp_realnvp.internal import private_api
from tfp_realnvp.latents.codec import Flow, bijector_of, decode, encode
from tfp_realnvp.latents.sampling import sample_latents, stateless_seed

__all__ = ["levels_of_representation"]

tfd = tfp.distributions


def levels_of_representation(
    flow: Flow,
    images: ArrayLike,
    base: tfd.Distribution | None = None,
    mode: Literal["redraw", "zero"] = "redraw",
    seed: int = 0,
) -> np.ndarray:
    """Keeps the latents of the coarsest scales, and replaces those of finer ones (Appendix D).

    The last column keeps the latents of all scales, and is the reconstruction; the one before it
    replaces those that were factored out first, half of all; and so on to the first, which keeps
    the latents of the coarsest scale alone. What is kept is what the coarse latents hold: the
    composition rather than the texture.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> flow = tfr.RealNVPImage((8, 8, 1), num_scales=2, num_blocks=0, num_filters=4)
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 1], dtype=np.uint8)
    >>> levels_of_representation(flow, images).shape
    (3, 2, 8, 8, 1)

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, Appendix D.

    Args:
      flow: a `RealNVPImage`, or a `tfd.TransformedDistribution` with one.
      images: [..., H, W, C], as `encode` takes them.
      base: over latents [H, W, C], to draw from; `None` is the base of `flow`, or a standard normal
        for a bijector.
      mode: whether the other latents are drawn anew, the same ones in each column, or are zero.
      seed: of the draw.

    Returns:
      Continuous pixel values, [..., num_scales, H, W, C]: column k keeps the k + 1 coarsest scales.

    Raises:
      TypeError: see `encode`.
      ValueError: if there is no such mode, or `base` has another shape; see `encode`.
    """
    if mode not in ("redraw", "zero"):
        raise ValueError(f"levels_of_representation: expected 'redraw' or 'zero', got {mode!r}.")
    bijector = bijector_of(flow)
    latents = encode(flow, images)
    if base is None and isinstance(flow, private_api.TransformedDistribution):
        base = flow.distribution
    if mode == "zero":
        others = np.zeros_like(latents)
    elif base is None:
        others = sample_latents(latents.shape[-3:], latents.shape[:-3], seed, dtype=bijector.dtype)
    else:
        if not base.event_shape.is_compatible_with(latents.shape[-3:]):
            raise ValueError(
                f"levels_of_representation: expected a base over {latents.shape[-3:]}, got "
                f"event_shape {base.event_shape}."
            )
        others = base.sample(latents.shape[:-3], seed=stateless_seed(seed)).numpy()
    kept, replaced = (bijector.split_latents(tf.constant(z)) for z in (latents, others))
    columns = [
        bijector.merge_latents([*replaced[:number], *kept[number:]])
        for number in reversed(range(bijector.num_scales))
    ]
    return decode(flow, tf.stack(columns, axis=-4))
