"""The complete Real NVP for images, as one bijector."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfp_realnvp.bijectors.architecture import (
    ImageArchitecture,
    NetworkFn,
    checked_image_shape,
    num_scales_of,
)
from tfp_realnvp.bijectors.assembled_flow import AssembledFlow
from tfp_realnvp.bijectors.flow_chain import FlowChain
from tfp_realnvp.bijectors.masks import Mask
from tfp_realnvp.bijectors.multi_scale import multi_scale_flow, shallow_conv
from tfp_realnvp.bijectors.patch_flow import jet_masks, patch_flow
from tfp_realnvp.bijectors.pixel_logit import PixelLogit
from tfp_realnvp.bijectors.squeeze import Squeeze
from tfp_realnvp.bijectors.transformers import TransformerFn
from tfp_realnvp.internal import validation

__all__ = ["PAPER_CONFIGURATIONS", "RealNVPImage"]

_CIFAR = {"image_shape": (32, 32, 3), "num_scales": 2, "num_blocks": 8, "num_filters": 64}
_IMAGENET_32 = {"image_shape": (32, 32, 3), "num_scales": 4, "num_blocks": 4, "num_filters": 32}
_IMAGES_64 = {"image_shape": (64, 64, 3), "num_scales": 5, "num_blocks": 2, "num_filters": 32}

# The rows of table 1 of the paper, with the architectures of section 4.1.
PAPER_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "cifar10": _CIFAR,
    "imagenet32": _IMAGENET_32,
    "imagenet64": _IMAGES_64,
    "lsun/bedroom": _IMAGES_64,
    "lsun/tower": _IMAGES_64,
    "lsun/church_outdoor": _IMAGES_64,
    "celeb_a": _IMAGES_64,
}


class RealNVPImage(AssembledFlow):
    r"""The multi-scale Real NVP for images: a bijector between latents and pixel values.

    Each scale but the last has three checkerboard couplings, a squeeze, three channel-wise
    couplings, and factors out half of the dimensions; the last has four checkerboard couplings.
    Masks alternate, and each coupling is followed by batch normalization of its output. The feature
    maps of the networks double with each scale, and for the channel-wise couplings within a scale.
    The last step towards the data is `PixelLogit`, so that events are pixel values:

    ```
    flow = tfd.TransformedDistribution(base, RealNVPImage((32, 32, 3)))
    bits_per_dim = -flow.log_prob(x) / (D ln 2)          # x = pixels + U[0, 1), D = H * W * C
    ```

    Latents have the shape of the image; `split_latents` gives them by scale. The networks are
    convolutional, so that a model samples and scores any height and width that its scales can
    squeeze, with a base distribution of that event shape.

    The latents of an image that is far from the training data can overflow. Each normalization
    divides by a standard deviation, which is at least sqrt(ε) = 0.01, so that n of them multiply a
    pixel by up to 100ⁿ. The log density is then -inf or NaN in float32, and finite in float64.
    `log_prob` and `sample` check for such values only with `validate_args`.

    #### Example

    >>> import tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> base = tfd.Sample(tfd.Normal(0., 1.), [8, 8, 3])
    >>> flow = tfd.TransformedDistribution(
    ...     base, tfr.RealNVPImage((8, 8, 3), num_blocks=1, num_filters=8))
    >>> images = flow.sample(2)
    >>> images.shape, flow.log_prob(images).shape
    (TensorShape([2, 8, 8, 3]), TensorShape([2]))

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, sections 3 and 4.1. Details
    that the paper leaves open are those of the authors' code (tensorflow/models, real_nvp).
    """

    architecture_type = ImageArchitecture

    def __init__(
        self,
        image_shape: Sequence[int | None],
        num_scales: int | None = None,
        num_blocks: int | None = None,
        num_filters: int = 32,
        *,
        num_couplings: int | None = None,
        num_channel_couplings: int | None = None,
        filter_growth: float | None = None,
        normalization: str | None = "batch",
        momentum: float | None = None,
        use_scale: bool | None = None,
        transformer: str | TransformerFn | None = None,
        invertible_conv: bool = False,
        split_prior: bool | None = None,
        attention: int | None = None,
        masks: Sequence[Mask] | None = None,
        patch_size: int | None = None,
        recompute: bool = False,
        alpha: float | None = 0.05,
        scale_pixels: bool | None = None,
        num_values: int | None = None,
        network_fn: NetworkFn | None = None,
        network_dtype: str | None = None,
        conditional_event_shape: Sequence[int | None] | None = None,
        num_classes: int | None = None,
        condition_dropout: float | None = None,
        embedding_size: int | None = None,
        flow: FlowChain | None = None,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "real_nvp_image",
    ) -> None:
        """Constructs the model and its networks.

        Args:
          image_shape: (height, width, channels). Height and width may be `None` if `num_scales` is
            given. They determine the default of `num_scales`, and are checked against it.
          num_scales: number of scales; by default the image is halved until its sides are about 4,
            or odd: a side of 32 gives four scales, one of 30 two, and one of 15 a single scale.
          num_blocks: residual blocks of each network, or transformer blocks; by default 4. Only
            without a `network_fn`.
          num_filters: feature maps of the networks of the first scale's checkerboard couplings.
          num_couplings: checkerboard couplings of each scale, by default 3; the last one has one
            more.
          num_channel_couplings: channel-wise couplings of each scale but the last; by default
            `num_couplings`. Only with several scales.
          filter_growth: factor by which feature maps grow when the side is halved; by default 2.
            Only with several scales.
          normalization: `'batch'`: batch normalization after each coupling; `'actnorm'`: an
            `ActNorm` before each coupling; or `None`.
          momentum: momentum of the moving statistics of the batch normalization after each
            coupling; by default 0.9. (A `ConvResNet` has other statistics, with a momentum of 0.9.)
          use_scale: `False` is short for `transformer='additive'`.
          transformer: transformer of the couplings: `'affine'`, the default, `'additive'` as in
            NICE, `'sigmoid_affine'`, `'rational_quadratic_spline'`, `'logistic_mixture'`, or a
            function that returns a new `Transformer`.
          invertible_conv: whether an `InvertibleConv1x1` comes before each coupling.
          split_prior: whether each half that is factored out has a learned prior: an affine
            coupling, given the other half, that starts as the identity; by default `False`. Only
            with several scales.
          attention: heads of the self-attention in all networks that see a halved image, including
            the first scale's channel-wise couplings; by default 0, for none. It starts as the
            identity. With `masks`, heads of all networks; by default 8 of a `VisionTransformer`.
          masks: masks of all couplings, from data to latents. There is then one scale, nothing is
            factored out, and the height and width are those of `image_shape`; see `jet`.
          patch_size: side of the squares of pixels, each of which is one position for `masks`; by
            default 1.
          recompute: whether gradients compute the activations of the networks again, one coupling
            at a time, instead of keeping them: less memory for one more forward pass. Only with
            networks that are Keras layers.
          alpha: argument of `PixelLogit`. With `None` there is no `PixelLogit`, and events are any
            real numbers.
          scale_pixels: whether pixel values are scaled to [-1, 1) without a logit; by default
            `False`. Only with an `alpha` of `None`.
          num_values: number of gray levels; by default 256. Only with a logit or `scale_pixels`.
          network_fn: function that returns the network of a coupling; by default the paper's
            `ConvResNet`, with `masks` a `VisionTransformer`. It gets the keyword arguments `mask`,
            `input_channels`, `output_channels`, `num_filters`, `name` and `dtype` (the
            `network_dtype`), in a conditional flow `conditional_event_shape`, the shape of the
            embedded condition, and with attention `num_heads`. The constructor builds Keras layers.
          network_dtype: name of the Keras dtype policy of the networks, for example
            `'mixed_bfloat16'`; by default the global policy, or float64 if `dtype` is.
          conditional_event_shape: shape of the condition of an image: [K] for a vector, or [H, W,
            K] for an image. The flow then needs a `conditional_input` of this shape, [..., K] or
            [..., H, W, K]. An image has the height and width of the data, and is squeezed as the
            data is.
          num_classes: number of classes, for a flow that needs a `conditional_input` of integer
            labels [...] in [0, num_classes).
          condition_dropout: the probability with which `FlowModel.fit` leaves out the condition of
            an image. `conditional_input=None` then gives the density without a condition.
          embedding_size: length of the embedding of labels and vectors, from which each network
            predicts shifts of its activations; by default 64.
          flow: the attribute `flow` of another model of the same architecture, to share its
            networks, as copies do.
          dtype: `tf.float32` or `tf.float64`, of values and log det.
          validate_args: whether to assert that values and log dets are finite, and that data is in
            the range of `PixelLogit`.
          name: name of the operations.

        Raises:
          ValueError: if the image cannot be squeezed `num_scales - 1` times, or an argument is out
            of range or has no effect beside the others.
          TypeError: if an argument has a wrong type, or `dtype` is not float32 or float64.
        """
        parameters = dict(locals())
        options = ImageArchitecture.resolve(parameters)
        architecture = ImageArchitecture.of(options, dtype)
        logit = []
        if options["num_values"] is not None:
            arguments = {"dtype": architecture.dtype, "validate_args": validate_args}
            logit = [PixelLogit(alpha, options["num_values"], **arguments)]
        super().__init__(
            architecture,
            options,
            multi_scale_flow if architecture.masks is None else patch_flow,
            logit,
            flow=flow,
            validate_args=validate_args,
            parameters=parameters,
            name=name,
        )

    @classmethod
    def for_dataset(cls, dataset: str, **overrides: Any) -> RealNVPImage:
        """Returns the paper's model for a dataset (table 1 and section 4.1).

        #### Example

        >>> import tfp_realnvp as tfr
        >>> flow = tfr.RealNVPImage.for_dataset('celeb_a', num_blocks=1, num_filters=4)
        >>> flow.image_shape, flow.num_scales
        ((64, 64, 3), 5)

        Args:
          dataset: a key of `PAPER_CONFIGURATIONS`: `'cifar10'`, `'imagenet32'`, `'imagenet64'`,
            `'lsun/bedroom'`, `'lsun/tower'`, `'lsun/church_outdoor'` or `'celeb_a'`.
          **overrides: constructor arguments, which replace those of the configuration. With
            another `image_shape` there are at most as many scales as its sides allow.

        Raises:
          ValueError: if the paper has no such dataset.
        """
        names = sorted(PAPER_CONFIGURATIONS)
        validation.choice(dataset, names, f"{cls.__name__}: expected a dataset of the paper")
        configuration = {**PAPER_CONFIGURATIONS[dataset], **overrides}
        if "num_scales" not in overrides:
            image_shape = checked_image_shape(configuration["image_shape"], "RealNVPImage")
            configuration["num_scales"] = num_scales_of(image_shape, configuration["num_scales"])
        return cls(**configuration)

    @classmethod
    def compact(cls, image_shape: Sequence[int | None], **overrides: Any) -> RealNVPImage:
        """Returns a model that reaches lower bits/dim in little time on a small machine.

        It has shallow networks that start at zero, an `ActNorm` instead of batch normalization and
        an `InvertibleConv1x1` before each coupling, split priors, and three scales, or as many as
        the sides of the image allow: two at 30×30, one at 15×15. A scale has two checkerboard
        couplings and eight channel-wise ones, with a quarter of the multiplications, the last scale
        three; a single scale has five checkerboard couplings. With `num_couplings` alone a scale
        has as many of both kinds. Each scale has 1.25 times as many feature maps as the one before.
        For three channels `alpha` is 0.4, a nearly linear scaling, which suits photographs.
        Otherwise it is the paper's 0.05, which suits images with many black or white pixels. The
        configuration was chosen by runs of a few minutes to an hour, see `benchmarks/README.md`.
        Train it by `Muon`, or by Adam with a high learning rate, 4e-3.

        #### Example

        >>> import tfp_realnvp as tfr
        >>> tfr.RealNVPImage.compact((32, 32, 3), num_filters=8).num_scales
        3

        Args:
          image_shape: (height, width, channels).
          **overrides: constructor arguments, which replace those of the configuration.
        """
        image_shape = checked_image_shape(image_shape, "RealNVPImage.compact")
        num_scales = overrides.get("num_scales", num_scales_of(image_shape, 3))
        if num_scales == 1:
            of_scales = {"num_couplings": 4}
        else:
            # A channel-wise coupling has a quarter of the multiplications of a checkerboard one.
            couplings = {"num_couplings": 2, "num_channel_couplings": 8}
            of_scales = {"filter_growth": 1.25, "split_prior": True}
            of_scales.update({} if "num_couplings" in overrides else couplings)
        configuration = {
            "num_scales": num_scales,
            "num_filters": 64,
            **of_scales,
            "normalization": "actnorm",
            "invertible_conv": True,
            "alpha": 0.4 if image_shape[-1] == 3 else 0.05,
            "network_fn": shallow_conv,
        }
        return cls(image_shape, **{**configuration, **overrides})

    @classmethod
    def jet(
        cls,
        image_shape: Sequence[int],
        *,
        patch_size: int = 4,
        num_couplings: int | None = None,
        num_blocks: int = 2,
        width: int | None = None,
        num_heads: int | None = None,
        **overrides: Any,
    ) -> RealNVPImage:
        """Returns a Jet: couplings of patches, with vision transformers as networks.

        The couplings are `SigmoidAffine`, in groups of five. The first four couplings of a group
        transform half of the channels of all patches, chosen by a fixed random permutation. The
        fifth coupling transforms half of the patches. Its mask is, from group to group, a
        checkerboard, vertical stripes or horizontal stripes, each followed by its complement.
        There is no normalization, nothing is factored out, and pixel values are scaled to [-1, 1]
        without a logit. Height and width are fixed, and multiples of `2 * patch_size`.

        A coupling scales half of the dimensions by at most 2, so that with n couplings bits/dim are
        at least `log2(num_values / 2) + log2(2π) / 2 - n / 2`. A warning says where n is so small
        that this is above 0.5.

        For images of 64×64×3 the defaults have 207,177,216 parameters, and reach 3.72 bits/dim of
        ImageNet in 200 epochs in the paper. `python examples/train_paper.py --configuration=jet`
        has its training recipe.

        #### Example

        >>> import tfp_realnvp as tfr
        >>> flow = tfr.RealNVPImage.jet((32, 32, 3), num_couplings=16, width=64, num_heads=4)
        >>> len(flow.architecture.masks), flow.architecture.masks[4]
        (16, SpatialMask(pattern='checkerboard', parity=0))

        Args:
          image_shape: (height, width, channels).
          patch_size: side of a patch.
          num_couplings: number of couplings; by default 32. Not beside `masks`.
          num_blocks: transformer blocks of each network.
          width: size of the tokens; by default 512. Not beside `num_filters`, its other name.
          num_heads: heads of the attention; by default 8. Not beside `attention`, its other name.
          **overrides: constructor arguments, which replace those of the configuration.

        Raises:
          ValueError: if an argument is out of range, or two of them say the same.

        #### References

        Kolesnikov, Pinto, Tschannen: Jet: a modern transformer-based normalizing flow. The
        configuration is that of google-research/big_vision.
        """
        image_shape = checked_image_shape(image_shape, "RealNVPImage.jet")
        for name, value, other in (
            ("num_couplings", num_couplings, "masks"),
            ("width", width, "num_filters"),
            ("num_heads", num_heads, "attention"),
        ):
            if value is not None and other in overrides:
                raise ValueError(
                    f"RealNVPImage.jet: expected either {name} or {other}, got {value!r} and "
                    f"{overrides[other]!r}."
                )
        patch_size, num_couplings = (
            validation.integer(value, 1, f"RealNVPImage.jet: expected {name} of at least 1")
            for name, value in (
                ("patch_size", patch_size),
                ("num_couplings", 32 if num_couplings is None else num_couplings),
            )
        )
        configuration = {
            "masks": jet_masks(num_couplings, image_shape[-1] * patch_size**2),
            "patch_size": patch_size,
            "num_blocks": num_blocks,
            "num_filters": 512 if width is None else width,
            "attention": 8 if num_heads is None else num_heads,
            "normalization": None,
            "transformer": "sigmoid_affine",
            "alpha": None,
            "scale_pixels": True,
        }
        flow = cls(image_shape, **{**configuration, **overrides})
        _warn_of_few_couplings(flow)
        return flow

    @property
    def image_shape(self) -> tuple[int | None, int | None, int]:
        """The argument `image_shape`: (height, width, channels)."""
        return self.architecture.image_shape

    @property
    def num_scales(self) -> int:
        """The number of scales."""
        return self.architecture.num_scales

    @property
    def has_fixed_size(self) -> bool:
        """Whether images have to have the height and width of `image_shape`: with `masks`."""
        return self.architecture.masks is not None

    def split_latents(self, latents: tf.Tensor) -> list[tf.Tensor]:
        """Returns the latents by scale, the finest first.

        Args:
          latents: [..., H, W, C], as `inverse` gives them.

        Returns:
          For each scale i = 1 … L - 1 the half that it factors out, [..., H / 2ⁱ, W / 2ⁱ, 2ⁱ C];
          then the coarsest latents, [..., H / 2ᴸ⁻¹, W / 2ᴸ⁻¹, 2ᴸ⁻¹ C].

        Raises:
          TypeError: if the dtype is not the bijector's.
          ValueError: if the shape does not fit.
        """
        coarser_half = self._as_input(latents, inverse=False)
        by_scale = []
        for _ in range(self.num_scales - 1):
            squeezed = Squeeze(order="factor_out", dtype=self.dtype).forward(coarser_half)
            coarser_half, factored_out = tf.split(squeezed, 2, axis=-1)
            by_scale.append(factored_out)
        return [*by_scale, coarser_half]

    def merge_latents(self, by_scale: Sequence[tf.Tensor]) -> tf.Tensor:
        """Returns the latents, [..., H, W, C], that `split_latents` gives as `by_scale`.

        Args:
          by_scale: `num_scales` tensors, the finest scale first.

        Raises:
          ValueError: if the number of tensors is not `num_scales`.
        """
        if len(by_scale) != self.num_scales:
            raise ValueError(
                f"{self.name}: expected latents of {self.num_scales} scales, got {len(by_scale)}."
            )
        *finer, coarser_half = by_scale
        for factored_out in reversed(finer):
            squeezed = tf.concat([coarser_half, factored_out], axis=-1)
            coarser_half = Squeeze(order="factor_out", dtype=self.dtype).inverse(squeezed)
        return coarser_half

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        sizes = self.image_shape[:2] if self.has_fixed_size else (None, None)
        return tf.TensorShape([*sizes, self.image_shape[-1]])

    def _check_event_shape(self, shape: tf.TensorShape, inverse: bool) -> None:
        divisor = 2 ** (self.num_scales - 1)
        if any(size is not None and size % divisor for size in shape[:2]):
            raise ValueError(
                f"{self.name}: expected a height and width divisible by {divisor}, for "
                f"{self.num_scales} scales, got shape {shape}."
            )


def _warn_of_few_couplings(flow: RealNVPImage) -> None:
    architecture, number = flow.architecture, len(flow.architecture.masks)
    others = architecture.mixing or architecture.normalization
    is_bounded = architecture.transformer == "sigmoid_affine" and not others
    if not (is_bounded and flow.parameters["scale_pixels"]):
        return
    bound = math.log2(flow.parameters["num_values"] / 2 * math.sqrt(2 * math.pi)) - number / 2
    if bound > 0.5:
        warnings.warn(
            f"RealNVPImage.jet: {number} couplings, each of which scales half of the dimensions by "
            f"at most 2, cannot reach less than {bound:.1f} bits/dim. "
            f"num_couplings={math.ceil(number + 2 * bound - 1)} can.",
            stacklevel=3,
        )
