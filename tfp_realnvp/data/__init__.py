"""Loads images as arrays, and makes training batches in a reproducible order."""

from tfp_realnvp.data.batches import batches
from tfp_realnvp.data.load_arrays import ImageArrays, list_images, load_arrays

__all__ = ["ImageArrays", "batches", "list_images", "load_arrays"]
