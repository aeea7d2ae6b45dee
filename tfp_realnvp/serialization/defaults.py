"""The defaults of 0.2.0, for files that name only the arguments that differ from them.

A configuration now names each argument, so that a default that changes does not change a saved
model. Its value here stays what it is.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from tfp_realnvp.bijectors.architecture import ImageArchitecture
from tfp_realnvp.bijectors.assembled_flow import AssembledFlow
from tfp_realnvp.bijectors.multi_scale import shallow_conv
from tfp_realnvp.distributions import VariationalDequantization

__all__ = ["completed"]

_BIJECTOR = {"dtype": tf.float32, "validate_args": False}
_RANKED = {**_BIJECTOR, "event_ndims": 3}

# A function gives a default that depends on arguments before it.
_FLOW = {
    **_BIJECTOR,
    "network_fn": None,
    "momentum": 0.9,
    "use_scale": True,
    "transformer": lambda arguments: "affine" if arguments["use_scale"] else "additive",
    "recompute": False,
    "network_dtype": None,
    "conditional_event_shape": None,
    "num_classes": None,
    "condition_dropout": None,
    "embedding_size": 64,
}
_IMAGE = {
    **_FLOW,
    "num_scales": None,
    "num_blocks": 4,
    "num_filters": 32,
    "num_couplings": 3,
    "num_channel_couplings": lambda arguments: arguments["num_couplings"],
    "filter_growth": 2.0,
    "normalization": "batch",
    "invertible_conv": False,
    "split_prior": False,
    "masks": None,
    "attention": lambda arguments: 0 if arguments["masks"] is None else None,
    "patch_size": 1,
    "alpha": 0.05,
    "scale_pixels": False,
    "num_values": 256,
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "RealNVPImage": _IMAGE,
    "RealNVPVector": {
        **_FLOW,
        "num_couplings": 8,
        "num_blocks": 2,
        "num_filters": 64,
        # Where another activation was the default, configurations named it.
        "activation": "relu",
        "mixing": "lu",
        "normalization": "actnorm",
        "standardization": None,
    },
    "VariationalDequantization": {
        **_IMAGE,
        "num_scales": 1,
        "num_couplings": 4,
        "normalization": None,
        "network_fn": shallow_conv,
        "alpha": None,
    },
    "ActNorm": {**_RANKED, "num_channels": None, "epsilon": 1e-6},
    "AffineCoupling": {**_RANKED, "use_scale": True, "conditional_event_shape": None},
    "BatchNormalization": {
        **_RANKED,
        "momentum": 0.9,
        "num_channels": None,
        "epsilon": 1e-4,
        "statistics": "running",
    },
    "ConditionalBijector": _BIJECTOR,
    "Coupling": {**_RANKED, "conditional_event_shape": None},
    "FactorOut": _BIJECTOR,
    "FlowChain": {**_BIJECTOR, "recompute": False, "event_ndims": None},
    "InvertibleConv1x1": _RANKED,
    "PixelLogit": {**_BIJECTOR, "alpha": 0.05, "num_values": 256},
    "Squeeze": {**_BIJECTOR, "block_size": 2, "order": "plain"},
    "Standardization": _BIJECTOR,
    "ChannelMask": {"parity": 0, "num_first": None, "permutation": None},
    "CheckerboardMask": {"parity": 0},
    "SpatialMask": {"pattern": "checkerboard", "parity": 0},
    "LogisticMixture": {"num_components": 8, "max_log_scale": 5.0, "max_log_factor": 3.0},
    "RationalQuadraticSpline": {
        "num_bins": 8,
        "bound": 8.0,
        "min_bin_size": 1e-3,
        "min_slope": 1e-3,
    },
    "ConditionalBase": {
        "variables": (),
        "dtype": tf.float32,
        "validate_args": False,
        "allow_nan_stats": True,
    },
}


def completed(found: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """Returns constructor arguments of a class of this package, with those that a file lacks.

    Args:
      found: the class.
      arguments: the arguments that the file has.
    """
    defaults = _DEFAULTS.get(found.__name__, {})
    if defaults.keys() <= arguments.keys():
        return arguments
    arguments = dict(arguments)
    for name, default in defaults.items():
        if name not in arguments:
            is_function = callable(default) and name != "network_fn"
            arguments[name] = default(arguments) if is_function else default
    # Files of 0.2.0 can have options without effect.
    if issubclass(found, AssembledFlow):
        return {**arguments, **found.architecture_type.resolve(arguments, strict=False)}
    if found is VariationalDequantization:
        flow = {**arguments, "conditional_event_shape": arguments["image_shape"]}
        flow = ImageArchitecture.resolve(flow, strict=False)
        others = ("num_values", "conditional_event_shape")
        return {**arguments, **flow, **{name: arguments[name] for name in others}}
    return arguments
