"""Connects the variables and options of a distribution with Keras."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors import Affine, Coupling, FlowBijector, SigmoidAffine
from tfp_realnvp.distributions import find_condition_spec, route
from tfp_realnvp.internal import private_api
from tfp_realnvp.internal.layer_variables import link_trainable
from tfp_realnvp.networks import ConvResNet, DenseResNet, ShallowConv, VisionTransformer

__all__ = [
    "TrackedVariables",
    "build_networks",
    "find_bijectors",
    "find_scales",
    "gains_from_rewrites",
    "variable_names",
]

tfd = tfp.distributions


class TrackedVariables(keras.layers.Layer):
    """Makes `tf.Variable`s known to Keras, which tracks only Keras variables.

    Files have each one under its name, not its position.
    """

    @classmethod
    def outside(
        cls, networks: Sequence[keras.layers.Layer], modules: Sequence[tf.Module]
    ) -> TrackedVariables:
        """Returns a layer of all variables of modules that are not variables of `networks`.

        Args:
          networks: layers that Keras tracks.
          modules: a distribution, and its dequantizer if there is one.
        """
        of_networks = {id(v.value) for layer in networks for v in layer.variables}
        variables: dict[str, tf.Variable] = {}
        for root, module in zip(("distribution", "dequantizer"), modules, strict=False):
            names = variable_names(module, root)
            for variable in module.variables:
                if id(variable) not in of_networks:
                    variables.setdefault(names[id(variable)], variable)
        return cls(variables, name="other_variables")

    def __init__(self, variables: Mapping[str, tf.Variable], name: str) -> None:
        super().__init__(name=name)
        self.wrapped = [
            keras.Variable(v, trainable=v.trainable, dtype=v.dtype.name, name=key)
            for key, v in variables.items()
        ]
        for variable in self.wrapped:
            link_trainable(variable)
        self._refusal = ""
        self.built = True

    def save_own_variables(self, store: Any) -> None:
        """Writes the variables by name."""
        for variable in self.wrapped:
            store[variable.name] = variable

    def load_own_variables(self, store: Any) -> None:
        """Reads the variables by name.

        Raises:
          ValueError: if the file lacks a variable, or has others.
        """
        names = {variable.name for variable in self.wrapped}
        names_of_file = set(store.keys())
        missing, others = sorted(names - names_of_file), sorted(names_of_file - names)
        if missing or others:
            # After an error Keras looks in another place of the file, where there is nothing.
            if names_of_file or not self._refusal:
                self._refusal = (
                    f"{self.name}: expected a file of the variables of the model, got one without "
                    f"{_some(missing)}, and with {_some(others)} instead."
                )
            raise ValueError(self._refusal)
        for variable in self.wrapped:
            variable.assign(store[variable.name])


def variable_names(module: tf.Module, root: str) -> dict[int, str]:
    """Returns a name for each variable of a module, by its `id`.

    A name is the way to the variable through constructor arguments of distributions and bijectors,
    and attributes of other modules. Parts in a list go by their own names. So the name of a
    variable does not depend on the number or the order of other variables.

    Args:
      module: a distribution, a bijector or another module.
      root: the first part of each name.
    """
    names: dict[int, str] = {}
    # By `id`, which is that of one object as long as the object is kept.
    seen: dict[int, Any] = {}
    pending: collections.deque[tuple[str, Any]] = collections.deque([(root, module)])
    # Breadth first: a variable in several places has its shortest name.
    while pending:
        path, value = pending.popleft()
        if id(value) not in seen:
            seen[id(value)] = value
            if isinstance(value, tf.Variable):
                names[id(value)] = path
            else:
                pending.extend((f"{path}.{key}", child) for key, child in _children(value))
    # What lies elsewhere, for example in a list that is an attribute of a user's bijector.
    for variable in module.variables:
        names.setdefault(id(variable), f"{root}.{variable.name.split(':')[0].replace('/', '.')}")
    counts: dict[str, int] = {}
    for key, name in names.items():
        names[key] = _numbered(name, counts)
    return names


def _children(value: Any) -> list[tuple[str, Any]]:
    """Returns the named parts of a module, list or dictionary in which variables can be."""
    if isinstance(value, (list, tuple)):
        counts: dict[str, int] = {}
        keys = [
            _numbered(part.name, counts) if _has_parameters(part) else str(i)
            for i, part in enumerate(value)
        ]
        children = list(zip(keys, value, strict=True))
    elif isinstance(value, dict):
        children = [(str(key), part) for key, part in value.items()]
    elif isinstance(value, tf.Module):
        attributes = sorted(vars(value).items())
        if _has_parameters(value):
            # Their attributes also have caches, and collections of all variables.
            attributes = [(k, v) for k, v in attributes if isinstance(v, (tf.Variable, tf.Module))]
            attributes = [*value.parameters.items(), *attributes]
        children = [(key.lstrip("_"), part) for key, part in attributes]
    else:
        return []
    # Keras takes no slash in a name.
    return [(key.replace("/", "_"), part) for key, part in children]


def _has_parameters(value: Any) -> bool:
    """Returns whether a value is a distribution or a bijector."""
    # Modules first: to find that a new type is no subclass of these takes a millisecond.
    kinds = (tfd.Distribution, tfp.bijectors.Bijector)
    return isinstance(value, tf.Module) and isinstance(value, kinds)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{list(names[:5])}{more}"


def _numbered(name: str, counts: dict[str, int]) -> str:
    """Returns a name, with a number from its second occurrence on."""
    number = counts[name] = counts.get(name, -1) + 1
    return f"{name}_{number}" if number else name


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
        # An image of any size has that of the data.
        sizes = zip(spec.event_shape, distribution.event_shape, strict=False)
        zeros = tf.zeros([1, *(size or of_data for size, of_data in sizes)], condition.dtype)
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


def gains_from_rewrites(bijectors: Sequence[FlowBijector]) -> bool:
    """Returns whether TensorFlow's rewrites of a graph may make steps of training faster on a CPU.

    They do not for affine couplings with networks of this package without `attention`, but do for
    attention and for mixtures (see `benchmarks/README.md`). For other networks it is not known.

    Args:
      bijectors: all bijectors within the model.
    """
    couplings = [part for part in bijectors if isinstance(part, Coupling)]
    return not couplings or not all(
        type(coupling.network) in (ConvResNet, DenseResNet, ShallowConv, VisionTransformer)
        and getattr(coupling.network, "attention", None) is None
        and isinstance(coupling.transformer, (Affine, SigmoidAffine))
        for coupling in couplings
    )
