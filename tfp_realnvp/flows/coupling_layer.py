"""A coupling with its network, its normalization and its mixing of channels: `coupling_layer`."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfp_realnvp import bijectors
from tfp_realnvp.bijectors import Coupling, Mask, Transformer
from tfp_realnvp.bijectors.coupling import takes_condition
from tfp_realnvp.bijectors.transformers import TransformerFn
from tfp_realnvp.internal import initial_seeds, validation
from tfp_realnvp.internal.layer_variables import has_build

ConditionShape = tuple[int | None, ...] | None
NetworkFn = Callable[..., Callable[..., tf.Tensor]]
Layer = Callable[..., list[tfb.Bijector]]

_TRANSFORMERS: dict[str, TransformerFn] = {
    "affine": bijectors.Affine,
    "sigmoid_affine": bijectors.SigmoidAffine,
    "additive": bijectors.Additive,
    "rational_quadratic_spline": bijectors.RationalQuadraticSpline,
    "logistic_mixture": bijectors.LogisticMixture,
}


def coupling_layer(
    network_fn: NetworkFn,
    num_filters: int = 32,
    *,
    filter_growth: float = 1.0,
    attention: int = 0,
    transformer: str | TransformerFn = "affine",
    normalization: str | None = None,
    momentum: float | None = None,
    mixing: str | None = None,
    network_dtype: str | None = None,
) -> Layer:
    """Returns a function that makes a coupling, its normalization and its mixing of channels.

    `multi_scale` and `patch_flow` call the function for each mask.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> layer = tfr.coupling_layer(tfr.network_of(tfr.ShallowConv), 8, normalization='actnorm')
    >>> flow = tfr.multi_scale((8, 8, 3), 2, layer, pixels=tfr.PixelLogit())
    >>> flow.forward(tf.random.normal([5, 8, 8, 3])).shape
    TensorShape([5, 8, 8, 3])

    Args:
      network_fn: function that returns the network of a coupling, such as `network_of(ConvResNet)`.
        Its keyword arguments are `mask`, `input_channels`, `output_channels`, `num_filters`, `name`
        and `dtype`. A conditional flow adds `conditional_event_shape`, the shape of the embedded
        condition; `attention` adds `num_heads`. A Keras layer without a `build` is called once on
        symbolic inputs, so that its variables exist.
      num_filters: width of the networks at full resolution.
      filter_growth: factor by which the networks get wider each time the image is halved.
      attention: number of self-attention heads in networks that see a halved image; 0 for none.
      transformer: `'affine'`, `'additive'` as in NICE, `'sigmoid_affine'`,
        `'rational_quadratic_spline'`, `'logistic_mixture'`, or a function that returns a new
        `Transformer`.
      normalization: `'batch'`: batch normalization after the coupling; `'actnorm'`: an `ActNorm`
        before the coupling, in order from data to latents; or `None`.
      momentum: momentum of the moving statistics of batch normalization; by default 0.9.
      mixing: `'lu'`: a learned `InvertibleConv1x1` before the coupling; `'permutation'`: a fixed
        random permutation; or `None`.
      network_dtype: name of the Keras dtype policy of the networks; by default the global policy,
        or float64 in flows of float64.

    Returns:
      A function `layer(mask, event_shape, name, halvings=0, condition_shape=None,
      dtype=tf.float32)`, which returns bijectors in order from data to latents. `event_shape` is
      (height, width, channels) or (size,). `name` is the prefix of the bijectors' names; unless the
      flow has a `seed`, the name also determines the permutation. `halvings` counts how often the
      image was halved. `condition_shape` is the shape of the embedded condition.

    Raises:
      TypeError, ValueError: if an argument is invalid or has no effect.
    """
    caller = "coupling_layer"
    num_filters = validation.count(num_filters, "num_filters", 1, caller)
    if not callable(transformer):
        validation.choice(transformer, (*_TRANSFORMERS,), f"{caller}: expected a transformer")
    expected = f"{caller}: expected a function that returns a new Transformer"
    if isinstance(transformer, Transformer):
        expected += f", for example the class `{type(transformer).__name__}`"
        raise TypeError(f"{expected}, got {transformer!r}.")
    transformer_fn = transformer if callable(transformer) else _TRANSFORMERS[transformer]
    normalizations, mixings = ("batch", "actnorm", None), ("lu", "permutation", None)
    validation.choice(normalization, normalizations, f"{caller}: expected a normalization")
    validation.choice(mixing, mixings, f"{caller}: expected a mixing")
    has_moving = normalization == "batch"
    validation.only(momentum, "momentum", has_moving, "with normalization='batch'", caller)

    def layer(
        mask: Mask,
        event_shape: Sequence[int | None],
        name: str,
        *,
        halvings: int = 0,
        condition_shape: ConditionShape = None,
        dtype: Any = tf.float32,
    ) -> list[tfb.Bijector]:
        *sides, channels = event_shape
        ndims, changed = len(event_shape), mask.changed_channels(channels)
        # With a checkerboard mask, each channel has kept and transformed positions.
        input_channels = channels if ndims == 3 and changed == channels else channels - changed
        if input_channels == 0:
            # If the mask keeps nothing, the network's input is the condition or a constant.
            is_input = condition_shape is not None and len(condition_shape) == ndims
            input_channels = condition_shape[-1] if is_input else 1
        # For the couplings of the paper and of NICE, `AffineCoupling` makes the transformer.
        is_affine = transformer_fn in (bijectors.Affine, bijectors.Additive)
        new_transformer: Any = transformer_fn if is_affine else transformer_fn()
        is_transformer = is_affine or isinstance(new_transformer, Transformer)
        validation.require(is_transformer, expected, new_transformer, TypeError)
        policy = "float64" if dtype == tf.float64 else keras.config.dtype_policy().name
        # Construct the network first, so that its initial weights do not depend on other options.
        network = network_fn(
            mask=mask,
            input_channels=input_channels,
            output_channels=new_transformer.num_parameters * changed,
            num_filters=round(num_filters * filter_growth**halvings),
            name=name,
            dtype=network_dtype or policy,
            **({"num_heads": attention} if attention and halvings else {}),
            **({"conditional_event_shape": condition_shape} if condition_shape else {}),
        )
        if isinstance(network, keras.layers.Layer) and has_build(network) and not network.built:
            network.build((None, *sides, input_channels))
        options = {"event_ndims": ndims, "dtype": dtype}
        shape = condition_shape if takes_condition(network) else None
        of_coupling = {"conditional_event_shape": shape, "name": f"{name}_coupling", **options}
        coupling: Coupling
        if is_affine:
            use_scale = transformer_fn is bijectors.Affine
            coupling = bijectors.AffineCoupling(mask, network, use_scale=use_scale, **of_coupling)
        else:
            coupling = Coupling(mask, network, new_transformer, **of_coupling)
        _build(coupling, event_shape)
        parts: list[tfb.Bijector] = [coupling]
        options["num_channels"] = channels
        if mixing == "lu":
            parts.insert(0, bijectors.InvertibleConv1x1(**options, name=f"{name}_conv1x1"))
        elif mixing == "permutation":
            # Every process gets the same permutation: NumPy never changes `RandomState`.
            seed = initial_seeds.initial_seed() or zlib.crc32(name.encode())
            order = np.random.RandomState(seed).permutation(channels).tolist()
            parts.insert(0, tfb.Permute(order, name=f"{name}_permute"))
        if normalization == "actnorm":
            parts.insert(0, bijectors.ActNorm(**options, name=f"{name}_norm"))
        elif normalization == "batch":
            rate = 0.9 if momentum is None else momentum
            parts.append(bijectors.BatchNormalization(rate, **options, name=f"{name}_norm"))
        return parts

    return layer


def _build(coupling: Coupling, event_shape: Sequence[int | None]) -> None:
    """Creates variables that the network's `build` has not created, by a symbolic call.

    Weights can only be loaded into existing variables.
    """
    if coupling.is_built:
        return
    condition_shape = coupling.conditional_event_shape
    shapes = [event_shape] if condition_shape is None else [event_shape, condition_shape]

    @tf.function(autograph=False)
    def call(event: tf.Tensor, condition: tf.Tensor | None = None) -> None:
        coupling._inverse_and_log_det(event, bijectors.Pass(condition=condition))

    # Keras creates the variables at the end of this scope, outside of the graph.
    with keras.StatelessScope(collect_losses=True):
        call.get_concrete_function(*(tf.TensorSpec([None, *s], coupling.dtype) for s in shapes))


def network_of(network_class: type[keras.layers.Layer], **options: Any) -> NetworkFn:
    """Returns a `network_fn` that constructs networks of a class of this package.

    #### Example

    >>> import tfp_realnvp as tfr
    >>> network_fn = tfr.network_of(tfr.ConvResNet, num_blocks=1)
    >>> network = network_fn(mask=tfr.CheckerboardMask(1), output_channels=6, num_filters=8)
    >>> network.num_blocks, network.num_filters, network.checkerboard_parity
    (1, 8, 1)

    Args:
      network_class: `ConvResNet`, `ShallowConv`, `VisionTransformer` or `DenseResNet`.
      **options: arguments of the class.
    """

    def network_fn(
        *, mask: Mask, output_channels: int, input_channels: int | None = None, **kwargs: Any
    ) -> keras.layers.Layer:
        if isinstance(mask, bijectors.CheckerboardMask):
            kwargs["checkerboard_parity"] = mask.parity
        return network_class(output_channels, **{**options, **kwargs})

    return network_fn
