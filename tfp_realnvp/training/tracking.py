"""Connects the variables and options of a distribution with Keras."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors import Affine, Coupling, FlowBijector
from tfp_realnvp.distributions import find_condition_spec, route
from tfp_realnvp.internal import private_api
from tfp_realnvp.internal.layer_variables import link_trainable

__all__ = ["TrackedVariables", "build_networks", "find_bijectors", "find_scales"]

tfd = tfp.distributions


class TrackedVariables(keras.layers.Layer):
    """Makes `tf.Variable`s known to Keras, which tracks only Keras variables.

    #### Example

    >>> import tensorflow as tf
    >>> from tfp_realnvp.training.tracking import TrackedVariables
    >>> layer = TrackedVariables([tf.Variable([1.0, 2.0])], name='layer')
    >>> layer.count_params()
    2
    """

    @classmethod
    def outside(
        cls, networks: Sequence[keras.layers.Layer], modules: Sequence[tf.Module]
    ) -> TrackedVariables:
        """Returns a layer of all variables of modules that are not variables of `networks`."""
        of_networks = {id(v.value) for layer in networks for v in layer.variables}
        variables = [v for module in modules for v in module.variables]
        return cls([v for v in variables if id(v) not in of_networks], name="other_variables")

    def __init__(self, variables: list[tf.Variable], name: str) -> None:
        super().__init__(name=name)
        self.wrapped = [
            keras.Variable(v, trainable=v.trainable, dtype=v.dtype.name, name=f"variable_{i}")
            for i, v in enumerate(variables)
        ]
        for variable in self.wrapped:
            link_trainable(variable)
        self.built = True


def find_bijectors(modules: Sequence[tf.Module]) -> list[FlowBijector]:
    """Returns all bijectors of this package within modules."""
    parts = [part for module in modules for part in module.submodules]
    return [part for part in parts if isinstance(part, FlowBijector)]


def build_networks(distribution: tfd.Distribution, bijectors: Sequence[FlowBijector]) -> None:
    """Creates the variables of bijectors that create them at their first call.

    Args:
      distribution: the distribution.
      bijectors: all bijectors within it.

    Raises:
      ValueError: if variables are missing, and the distribution has no known event shape.
    """
    if all(part.is_built for part in bijectors):
        return
    if not distribution.event_shape.is_fully_defined():
        raise ValueError(
            "FlowModel: expected built networks, or a distribution of known event_shape, got "
            f"{distribution.event_shape}."
        )
    image = tf.zeros([1, *distribution.event_shape], distribution.dtype)
    spec, options = find_condition_spec(distribution), {}
    if spec is not None:
        condition = spec.tensor_spec(distribution.dtype)
        zeros = tf.zeros([size or 1 for size in condition.shape], condition.dtype)
        options = route(distribution, conditional_input=zeros)
    distribution.log_prob(image, **options)


def find_scales(
    networks: Sequence[keras.layers.Layer], bijectors: Sequence[FlowBijector]
) -> list[tf.Variable]:
    """Returns the scales with an L2 penalty: those of weight normalization and of tanh.

    A layer has scales of weight normalization if it has an attribute `weight_norm_scales`.
    """
    layers = [layer for network in networks for layer in private_api.flatten_layers(network)]
    of_layers = [v.value for layer in layers for v in getattr(layer, "weight_norm_scales", ())]
    transformers = [part.transformer for part in bijectors if isinstance(part, Coupling)]
    return of_layers + [affine.scale for affine in transformers if isinstance(affine, Affine)]
