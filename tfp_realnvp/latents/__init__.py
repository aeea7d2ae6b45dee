"""Works with latents: encode, sample, interpolate and complete images and vectors."""

from tfp_realnvp.latents.codec import Reconstruction, decode, encode, reconstruct
from tfp_realnvp.latents.completion import Completion, complete
from tfp_realnvp.latents.interpolation import interpolate, manifold, swap_condition
from tfp_realnvp.latents.sampling import (
    ScaleStatistics,
    extrapolate,
    latent_statistics,
    levels_of_representation,
    sample_latents,
)

__all__ = [
    "Completion",
    "Reconstruction",
    "ScaleStatistics",
    "complete",
    "decode",
    "encode",
    "extrapolate",
    "interpolate",
    "latent_statistics",
    "levels_of_representation",
    "manifold",
    "reconstruct",
    "sample_latents",
    "swap_condition",
]
