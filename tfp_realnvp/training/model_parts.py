"""The parts of a distribution that training needs: bijectors, networks and variables."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.bijectors import (
    ActNorm,
    Affine,
    BatchNormalization,
    Coupling,
    FlowBijector,
    SigmoidAffine,
)
from tfp_realnvp.bijectors.coupling import NetworkCoupling
from tfp_realnvp.bijectors.flow_chain import outermost_parts
from tfp_realnvp.distributions.data_spec import DataSpec
from tfp_realnvp.internal import private_api
from tfp_realnvp.networks import ConvResNet, DenseResNet, ShallowConv, VisionTransformer
from tfp_realnvp.training.model_variables import TrackedVariables


class ModelParts:
    """The parts of a distribution, and of its dequantizer, whose networks are built.

    Attributes:
      bijectors: all `FlowBijector`s.
      layers: the Keras layers of the bijectors.
      other_variables: a layer with all variables outside of `layers`.
      scales: the variables in the L2 penalty.
      normalizations_in_forward: batch normalizations through which data pass by `forward`.
      gains_from_rewrites: whether TensorFlow's graph rewrites can speed up steps on a CPU.
    """

    def __init__(self, data_spec: DataSpec) -> None:
        """Finds the parts."""
        parts = [part for module in data_spec.modules for part in module.submodules]
        self.bijectors = [part for part in parts if isinstance(part, FlowBijector)]
        layers = [layer for part in self.bijectors for layer in part.layers]
        self.layers = list(dict.fromkeys(layers))
        self.other_variables = TrackedVariables(self.layers, data_spec.modules)
        self.scales = _find_scales(self.layers, self.bijectors)
        self.gains_from_rewrites = _gains_from_rewrites(self.bijectors)
        in_forward = [*_normalizations_in_forward(data_spec.distribution)]
        if data_spec.dequantizer is not None:
            in_forward += _normalizations_in_forward(data_spec.dequantizer.bijector, True)
        self.normalizations_in_forward = in_forward

    @property
    def networks(self) -> list[keras.layers.Layer]:
        """Networks and condition embeddings of the bijectors."""
        kinds = ("network", "embedding")
        parts = [(part, getattr(part, kind, None)) for part in self.bijectors for kind in kinds]
        return list(dict.fromkeys(layer for part, layer in parts if layer in part.layers))

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        """The variables of all layers that are trainable."""
        layers = [*self.layers, self.other_variables]
        variables = {id(v): v for layer in layers for v in layer.trainable_variables}
        return list(variables.values())

    @property
    def statistics(self) -> list[tf.Variable]:
        """The variables that training steps set without a gradient."""
        return [v for part in self.bijectors for v in part.variables_set_in_training]

    @property
    def act_norms(self) -> list[ActNorm]:
        """The normalizations that the first batch initializes."""
        return [part for part in self.bijectors if isinstance(part, ActNorm)]


def _normalizations_in_forward(module: Any, is_forward: bool = False) -> Iterator[Any]:
    """Yields the batch normalizations through which data pass by `forward`, as in a `tfb.Invert`.

    `is_forward` says whether data pass through the module itself by `forward`.
    """
    for part in outermost_parts(module, (private_api.Invert, BatchNormalization)):
        if isinstance(part, private_api.Invert):
            yield from _normalizations_in_forward(part.bijector, not is_forward)
        elif is_forward:
            yield part


def _find_scales(
    networks: Sequence[keras.layers.Layer], bijectors: Sequence[FlowBijector]
) -> list[keras.Variable]:
    """Returns the scales in the L2 penalty: the scales of weight normalization and of tanh.

    A layer lists its weight-normalization scales in the attribute `weight_norm_scales`.
    """
    layers = [layer for network in networks for layer in private_api.flatten_layers(network)]
    of_layers = [v for layer in layers for v in getattr(layer, "weight_norm_scales", ())]
    transformers = [part.transformer for part in bijectors if isinstance(part, Coupling)]
    return of_layers + [affine.scale for affine in transformers if isinstance(affine, Affine)]


def _gains_from_rewrites(bijectors: Sequence[FlowBijector]) -> bool:
    """Returns whether to keep TensorFlow's graph rewrites, which can speed up steps on a CPU.

    Rewrites do not speed up affine couplings with networks of this package, but they speed up
    attention and mixtures (see `benchmarks/README.md`). Unmeasured networks keep the rewrites.
    """
    couplings = [part for part in bijectors if isinstance(part, NetworkCoupling)]
    return not couplings or not all(
        type(coupling.network) in (ConvResNet, DenseResNet, ShallowConv, VisionTransformer)
        and getattr(coupling.network, "attention", None) is None
        and isinstance(coupling.transformer, (Affine, SigmoidAffine))
        for coupling in couplings
    )
