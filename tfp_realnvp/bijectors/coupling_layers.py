"""A sequence of couplings, each with its normalization and its mixing of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.act_norm import ActNorm
from tfp_realnvp.bijectors.affine_coupling import AffineCoupling
from tfp_realnvp.bijectors.architecture import (
    Architecture,
    ImageArchitecture,
    VectorArchitecture,
)
from tfp_realnvp.bijectors.batch_normalization import BatchNormalization
from tfp_realnvp.bijectors.coupling import Coupling, takes_condition
from tfp_realnvp.bijectors.invertible_conv1x1 import InvertibleConv1x1
from tfp_realnvp.bijectors.masks import Mask
from tfp_realnvp.bijectors.transformers import Additive, Affine

__all__ = ["coupling", "coupling_layers"]

tfb = tfp.bijectors

ConditionShape = tuple[int | None, ...] | None


def coupling_layers(
    architecture: ImageArchitecture | VectorArchitecture,
    masks: Sequence[Mask],
    channels: int,
    num_filters: int,
    condition_shape: ConditionShape,
    name: str,
    **network_options: Any,
) -> list[tfb.Bijector]:
    """Returns bijectors with one coupling for each mask, in order from data to latents.

    Args:
      architecture: the options of the flow.
      masks: masks of the couplings.
      channels: number of channels of the events.
      num_filters: width of the networks.
      condition_shape: shape of an embedded condition, as the networks get it; or `None`.
      name: prefix of the names of the bijectors.
      **network_options: `positions`, the height and width that the networks are built for, by
        default any; and other keyword arguments for the networks.
    """
    options = {
        "num_channels": channels,
        "event_ndims": architecture.event_ndims,
        "dtype": architecture.dtype,
    }
    # Parts get each option by name: a flow does not depend on their defaults.
    bijectors = []
    for i, mask in enumerate(masks):
        # Networks come first, so that their initial weights do not depend on other options.
        layer = coupling(
            architecture,
            mask,
            channels,
            num_filters,
            condition_shape,
            f"{name}{i}",
            **network_options,
        )
        if architecture.normalization == "actnorm":
            bijectors.append(ActNorm(epsilon=1e-6, **options, name=f"{name}{i}_norm"))
        if architecture.mixing == "lu":
            bijectors.append(InvertibleConv1x1(**options, name=f"{name}{i}_conv1x1"))
        elif architecture.mixing == "permutation":
            # The permutation is the same in each process: NumPy never changes `RandomState`.
            order = np.random.RandomState(i).permutation(channels).tolist()
            bijectors.append(tfb.Permute(order, name=f"{name}{i}_permute"))
        bijectors.append(layer)
        if architecture.normalization == "batch":
            bijectors.append(
                BatchNormalization(
                    architecture.momentum,
                    epsilon=1e-4,
                    statistics="running",
                    **options,
                    name=f"{name}{i}_norm",
                )
            )
    return bijectors


def coupling(
    architecture: Architecture,
    mask: Mask,
    channels: int,
    num_filters: int,
    condition_shape: ConditionShape,
    name: str,
    positions: Sequence[int] | None = None,
    **network_options: Any,
) -> Coupling:
    """Returns a coupling with a network that is built; see `coupling_layers`.

    Networks are built for the height and width `positions`, by default for any.
    """
    ndims, changed = architecture.event_ndims, mask.changed_channels(channels)
    # A checkerboard transforms all channels, and the network sees all of them.
    sees_all = ndims == 3 and changed == channels
    input_channels = channels if sees_all else channels - changed
    if input_channels == 0:
        # With nothing to keep, the network sees the condition, or a constant.
        is_input = condition_shape is not None and len(condition_shape) == ndims
        input_channels = condition_shape[-1] if is_input else 1
    with tf.name_scope(f"{name}_coupling"):
        transformer = architecture.new_transformer()
    if condition_shape is not None:
        network_options["conditional_event_shape"] = condition_shape
    network = architecture.network(
        mask=mask,
        input_channels=input_channels,
        output_channels=transformer.num_parameters * changed,
        num_filters=num_filters,
        name=name,
        **network_options,
    )
    if isinstance(network, keras.layers.Layer) and not network.built:
        network.build((None, *(positions or [None] * (ndims - 1)), input_channels))
    options = {
        "conditional_event_shape": condition_shape if takes_condition(network) else None,
        "event_ndims": ndims,
        "dtype": architecture.dtype,
        "name": f"{name}_coupling",
    }
    # The couplings of the paper and of NICE have a class of their own.
    if type(transformer) is Affine:
        return AffineCoupling(mask, network, use_scale=True, scale=transformer.scale, **options)
    if type(transformer) is Additive:
        return AffineCoupling(mask, network, use_scale=False, **options)
    return Coupling(mask, network, transformer, **options)
