"""Images to measure on: what they show does not matter, that they are alike does."""

import numpy as np

__all__ = ["synthetic_images"]


def synthetic_images(number: int, image_shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    """Returns `uint8` images [number, H, W, C] of soft blobs with a little noise."""
    rng = np.random.default_rng(seed)
    height, width, channels = image_shape
    coarse = rng.uniform(40, 215, [number, -(-height // 4), -(-width // 4), channels])
    smooth = coarse.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]
    return np.clip(smooth + rng.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
