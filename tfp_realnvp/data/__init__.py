"""Images as arrays, by name or from files, and batches of arrays whose order is known."""

from tfp_realnvp.data.batches import batches
from tfp_realnvp.data.image_files import list_images
from tfp_realnvp.data.load_arrays import ImageArrays, load_arrays

__all__ = ["ImageArrays", "batches", "list_images", "load_arrays"]
