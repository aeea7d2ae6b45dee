"""Image datasets, by name, from files or from arrays, as batches of `uint8` pixels."""

from tfp_realnvp.data.array_file import load_array_file
from tfp_realnvp.data.image_folder import list_images
from tfp_realnvp.data.load import ImageBatches, load
from tfp_realnvp.data.load_arrays import ImageArrays, load_arrays

__all__ = [
    "ImageArrays",
    "ImageBatches",
    "list_images",
    "load",
    "load_array_file",
    "load_arrays",
]
