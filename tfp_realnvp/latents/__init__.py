"""The paper's experiments with the latents of a trained model, as functions of arrays.

Those that do not need the scales of an image also take vectors.
"""

from tfp_realnvp.latents.codec import Reconstruction, decode, encode, reconstruct
from tfp_realnvp.latents.completion import Completion, complete
from tfp_realnvp.latents.conditions import interpolate_conditions, swap_condition
from tfp_realnvp.latents.interpolation import interpolate
from tfp_realnvp.latents.levels import levels_of_representation
from tfp_realnvp.latents.manifold import manifold
from tfp_realnvp.latents.sampling import extrapolate, sample_latents
from tfp_realnvp.latents.statistics import ScaleStatistics, latent_statistics

__all__ = [
    "Completion",
    "Reconstruction",
    "ScaleStatistics",
    "complete",
    "decode",
    "encode",
    "extrapolate",
    "interpolate",
    "interpolate_conditions",
    "latent_statistics",
    "levels_of_representation",
    "manifold",
    "reconstruct",
    "sample_latents",
    "swap_condition",
]
