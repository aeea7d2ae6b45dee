"""Image data: arrays that need no network, and input pipelines of uint8 batches."""

from tfp_realnvp.data.image_arrays import ImageArrays
from tfp_realnvp.data.image_dataset import image_dataset
from tfp_realnvp.data.load_arrays import load_arrays

__all__ = [
    "ImageArrays",
    "image_dataset",
    "load_arrays",
]
