"""What Keras has to know of a distribution, and the other way round."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp import tfp_types
from tfp_realnvp.bijectors import AffineCoupling, FlowBijector, parts
from tfp_realnvp.networks import WeightNormConv2D

__all__ = ["TrackedVariables", "build_networks", "find_scales", "log_prob_options"]

tfd = tfp.distributions


class TrackedVariables(keras.layers.Layer):
    """Makes `tf.Variable`s known to Keras, which looks for its own kind of variables only.

    #### Example

    >>> import tensorflow as tf
    >>> layer = TrackedVariables([tf.Variable([1.0, 2.0])], name='layer')
    >>> layer.count_params()
    2
    """

    def __init__(self, variables: list[tf.Variable], name: str) -> None:
        super().__init__(name=name)
        self.wrapped = [
            keras.Variable(v, trainable=v.trainable, dtype=v.dtype.name, name=f"variable_{i}")
            for i, v in enumerate(variables)
        ]
        self.built = True


def build_networks(distribution: tfd.Distribution, bijectors: Sequence[FlowBijector]) -> None:
    """Makes the variables of bijectors that make them at their first call.

    Args:
      distribution: the distribution.
      bijectors: all that are in it.

    Raises:
      ValueError: if there are such, and the distribution has no known event shape.
    """
    if all(part.is_built for part in bijectors):
        return
    if not distribution.event_shape.is_fully_defined():
        raise ValueError(
            "FlowModel: expected built networks, or a distribution of known event_shape, got "
            f"{distribution.event_shape}."
        )
    image = tf.zeros([1, *distribution.event_shape], distribution.dtype)
    distribution.log_prob(image)


def find_scales(
    networks: Sequence[keras.layers.Layer], bijectors: Sequence[FlowBijector]
) -> list[tf.Variable]:
    """Returns all scales: those of weight normalisation, and those of tanh in couplings."""
    layers = [each for network in networks for each in network._flatten_layers()]
    return [layer.scale.value for layer in layers if isinstance(layer, WeightNormConv2D)] + [
        part.scale
        for part in bijectors
        if isinstance(part, AffineCoupling) and part.scale is not None
    ]


def log_prob_options(distribution: tfd.Distribution, **options: Any) -> dict[str, Any]:
    """Returns the keyword arguments of `log_prob` that take `options` to the bijectors in it."""
    if isinstance(distribution, tfp_types.TransformedDistribution):
        routed = {
            "distribution_kwargs": log_prob_options(distribution.distribution, **options),
            "bijector_kwargs": parts.call_options(distribution.bijector, **options),
        }
        return {name: kwargs for name, kwargs in routed.items() if kwargs}
    if isinstance(distribution, tfp_types.Independent):
        return log_prob_options(distribution.distribution, **options)
    return {}
