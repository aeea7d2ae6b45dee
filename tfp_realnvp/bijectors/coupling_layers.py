"""Couplings in a row, each with its normalization and its mixing of channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.act_norm import ActNorm
from tfp_realnvp.bijectors.affine_coupling import AffineCoupling
from tfp_realnvp.bijectors.batch_normalization import BatchNormalization
from tfp_realnvp.bijectors.coupling import Coupling, takes_condition
from tfp_realnvp.bijectors.invertible_conv1x1 import InvertibleConv1x1
from tfp_realnvp.bijectors.masks import Mask
from tfp_realnvp.bijectors.transformers import (
    LogisticMixture,
    RationalQuadraticSpline,
    TransformerFn,
)
from tfp_realnvp.internal import validation

__all__ = ["NORMALIZATIONS", "CouplingLayers", "NetworkFn", "check_transformer"]

tfb = tfp.bijectors

NORMALIZATIONS = ("batch", "actnorm", None)

# By name; `None` is that of `AffineCoupling`, affine or additive.
_TRANSFORMERS: dict[Any, TransformerFn | None] = {
    None: None,
    "rational_quadratic_spline": RationalQuadraticSpline,
    "logistic_mixture": LogisticMixture,
}

NetworkFn = Callable[..., Callable[..., tf.Tensor]]


def check_transformer(transformer: Any, name: str) -> None:
    """Raises `ValueError` if `transformer` is neither a function nor the name of a transformer."""
    if not callable(transformer):
        names = tuple(_TRANSFORMERS)
        validation.choice(transformer, names, f"{name}: expected a function or a transformer")


@dataclasses.dataclass(frozen=True)
class CouplingLayers:
    """Makes couplings of equal options, for each mask one.

    Attributes:
      network_fn: makes the network of a coupling, as in `RealNVPImage`.
      network_dtype: of the networks.
      normalization: one of `NORMALIZATIONS`.
      momentum: of `BatchNormalization`.
      use_scale: whether couplings are affine, or additive.
      transformer: a name, or a function that returns a new one.
      mixing: what comes before each coupling: `'lu'`, an `InvertibleConv1x1`, `'permutation'`, or
        `None`.
      event_ndims: 3 for images, 1 for vectors.
      dtype: of the bijectors.
    """

    network_fn: NetworkFn
    network_dtype: str
    normalization: str | None
    momentum: float
    use_scale: bool
    transformer: str | TransformerFn | None
    mixing: str | None
    event_ndims: int
    dtype: tf.DType

    def sequence(
        self,
        masks: Sequence[Mask],
        channels: int,
        filters: int,
        condition_shape: tuple[int | None, ...] | None,
        name: str,
    ) -> list[tfb.Bijector]:
        """Returns the bijectors from the data to the latents."""
        options = {
            "num_channels": channels,
            "event_ndims": self.event_ndims,
            "dtype": self.dtype,
        }
        bijectors = []
        for i, mask in enumerate(masks):
            # Networks first: their random numbers do not depend on the rest.
            coupling = self.coupling(mask, channels, filters, condition_shape, f"{name}{i}")
            if self.normalization == "actnorm":
                bijectors.append(ActNorm(**options, name=f"{name}{i}_norm"))
            if self.mixing == "lu":
                bijectors.append(InvertibleConv1x1(**options, name=f"{name}{i}_conv1x1"))
            elif self.mixing == "permutation":
                # The same in each process. NumPy keeps the numbers of `RandomState`.
                order = np.random.RandomState(i).permutation(channels).tolist()
                bijectors.append(tfb.Permute(order, name=f"{name}{i}_permute"))
            bijectors.append(coupling)
            if self.normalization == "batch":
                norm = BatchNormalization(self.momentum, **options, name=f"{name}{i}_norm")
                bijectors.append(norm)
        return bijectors

    def coupling(
        self,
        mask: Mask,
        channels: int,
        filters: int,
        condition_shape: tuple[int | None, ...] | None,
        name: str,
    ) -> Coupling:
        """Returns a coupling of events with `channels`, with a network that is built."""
        changed = mask.changed_channels(channels)
        # A checkerboard transforms all channels, and the network sees all of them.
        sees_all = self.event_ndims == 3 and changed == channels
        input_channels = channels if sees_all else channels - changed
        if input_channels == 0:
            # With nothing to keep, the network sees the condition, or a constant.
            is_input = condition_shape and len(condition_shape) == self.event_ndims
            input_channels = condition_shape[-1] if is_input else 1
        # An affine transformer has a learned scale: each coupling has its own.
        new_transformer = _TRANSFORMERS.get(self.transformer, self.transformer)
        transformer = None if new_transformer is None else new_transformer()
        if transformer is None:
            num_parameters = 2 if self.use_scale else 1
        else:
            num_parameters = transformer.num_parameters
        condition = {"conditional_event_shape": condition_shape} if condition_shape else {}
        network = self.network_fn(
            mask=mask,
            input_channels=input_channels,
            output_channels=num_parameters * changed,
            num_filters=filters,
            name=name,
            dtype=self.network_dtype,
            **condition,
        )
        if isinstance(network, keras.layers.Layer) and not network.built:
            network.build((*[None] * self.event_ndims, input_channels))
        options = {
            "conditional_event_shape": condition_shape if takes_condition(network) else None,
            "event_ndims": self.event_ndims,
            "dtype": self.dtype,
            "name": f"{name}_coupling",
        }
        if transformer is None:
            return AffineCoupling(mask, network, use_scale=self.use_scale, **options)
        return Coupling(mask, network, transformer, **options)
