"""The complete Real NVP for images, as one bijector: the paper's model, `compact`, and Jet."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfp_realnvp.bijectors.pixel_logit import PixelLogit
from tfp_realnvp.bijectors.transformers import TransformerFn
from tfp_realnvp.flows.conditional_flow import check_options
from tfp_realnvp.flows.coupling_layer import NetworkFn, coupling_layer, network_of
from tfp_realnvp.flows.image_flow import ImageFlow, checked_image_shape
from tfp_realnvp.flows.multi_scale import max_num_scales, multi_scale
from tfp_realnvp.flows.patch_flow import jet_masks, patch_flow
from tfp_realnvp.internal import validation
from tfp_realnvp.networks import ConvResNet, ShallowConv, VisionTransformer

_NAME = "RealNVPImage"
_CIFAR = {"image_shape": (32, 32, 3), "num_scales": 2, "num_blocks": 8, "num_filters": 64}
_IMAGENET_32 = {"image_shape": (32, 32, 3), "num_scales": 4, "num_blocks": 4, "num_filters": 32}
_IMAGES_64 = {"image_shape": (64, 64, 3), "num_scales": 5, "num_blocks": 2, "num_filters": 32}

# The datasets in table 1 of the paper, with their architectures from section 4.1.
PAPER_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "cifar10": _CIFAR,
    "imagenet32": _IMAGENET_32,
    "imagenet64": _IMAGES_64,
    "lsun/bedroom": _IMAGES_64,
    "lsun/tower": _IMAGES_64,
    "lsun/church_outdoor": _IMAGES_64,
    "celeb_a": _IMAGES_64,
}


class RealNVPImage(ImageFlow):
    r"""The multi-scale Real NVP for images: a bijector between latents and pixel values.

    Each scale except the last has three checkerboard couplings, a squeeze and three channel-wise
    couplings, and factors out half of the dimensions. The last scale has four checkerboard
    couplings. Masks alternate, and each coupling is followed by batch normalization of its output.
    The number of feature maps doubles with each scale, and again for the channel-wise couplings of
    a scale. The last step towards the data is `PixelLogit`, so that events are pixel values:

    ```
    flow = tfd.TransformedDistribution(base, RealNVPImage((32, 32, 3)))
    bits_per_dim = -flow.log_prob(x) / (D ln 2)          # x = pixels + U[0, 1), D = H * W * C
    ```

    The networks are convolutional, so images can have any height and width that the scales can
    squeeze, given a base distribution of that event shape. `multi_scale` and `coupling_layer`
    compose other models from these parts.

    The latents of an image far from the training data can overflow: n batch normalizations multiply
    a pixel by up to 100ⁿ. The log density is then -inf or NaN in float32, and finite in float64.
    With `validate_args`, non-finite values raise an error.

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

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, sections 3 and 4.1. Where the
    paper leaves details open, the model follows the authors' code (tensorflow/models, real_nvp).
    """

    def __init__(
        self,
        image_shape: Sequence[int | None],
        num_scales: int | None = None,
        num_blocks: int | None = None,
        num_filters: int = 32,
        *,
        filter_growth: float | None = None,
        num_couplings: int = 3,
        normalization: str | None = "batch",
        transformer: str | TransformerFn = "affine",
        invertible_conv: bool = False,
        split_prior: bool = False,
        attention: int = 0,
        alpha: float | None = 0.05,
        num_values: int | None = None,
        network_fn: NetworkFn | None = None,
        network_dtype: str | None = None,
        dtype: Any = tf.float32,
        name: str = "real_nvp_image",
        **options: Any,
    ) -> None:
        """Constructs the model, with new networks.

        Args:
          image_shape: (height, width, channels). Height and width may be `None` if `num_scales` is
            given.
          num_scales: number of scales; by default the image is halved until its sides are about 4,
            or odd: four scales for a side of 32, two for 30, and one for 15.
          num_blocks: residual blocks of each network; by default 4. Only without a `network_fn`.
          num_filters: feature maps in the networks of the first scale's checkerboard couplings.
          num_couplings: number of checkerboard couplings in each scale, plus one in the last scale;
            also the number of channel-wise couplings in each scale except the last.
          filter_growth: as in `coupling_layer`; by default 2. Only with several scales.
          normalization, transformer: as in `coupling_layer`.
          invertible_conv: whether an `InvertibleConv1x1` comes before each coupling.
          split_prior: whether each factored-out half has a learned prior: an affine coupling that
            depends on the other half and starts as the identity. Only with several scales.
          attention: number of self-attention heads in all networks that see a halved image,
            including the first scale's channel-wise couplings; 0 for none. Attention starts as the
            identity. Only with several scales.
          alpha: argument of `PixelLogit`. With `None`, events are any real numbers.
          num_values: number of gray levels; by default 256. Only with an `alpha`.
          network_fn: function that returns the network of a coupling, as in `coupling_layer`; by
            default a `ConvResNet`.
          network_dtype: as in `coupling_layer`, for example `'mixed_bfloat16'`.
          dtype, name: as in `image_flow`.
          **options: `num_channel_couplings`, as in `multi_scale`; the options of `image_flow`.

        Raises:
          ValueError: if the image cannot be squeezed `num_scales - 1` times, or an argument is out
            of range or has no effect.
          TypeError: if an argument has a wrong type or does not exist.
        """
        check_options(RealNVPImage.__init__, {*options} - {"num_channel_couplings"}, _NAME)
        image_shape = checked_image_shape(image_shape, _NAME)
        if num_scales is None:
            expected = f"{_NAME}: expected num_scales for images of unknown size"
            validation.require(None not in image_shape, expected, image_shape)
            # The recursion ends when the input of the last scale is 4 × 4 (section 4.1).
            num_scales = max(1, max_num_scales(image_shape, least=4))
        is_default, when = network_fn is None, "with the default network"
        validation.only(num_blocks, "num_blocks", is_default, when, _NAME)
        validation.only(num_values, "num_values", alpha is not None, "with an alpha", _NAME)
        of_scales: dict[str, Any] = {"filter_growth": filter_growth}
        of_scales |= {"split_prior": split_prior or None, "attention": attention or None}
        for option, value in of_scales.items():
            validation.only(value, option, num_scales != 1, "with several scales", _NAME)
        if network_fn is None:
            network_fn = network_of(ConvResNet, num_blocks=4 if num_blocks is None else num_blocks)
        pixels = None
        if alpha is not None:
            pixels = PixelLogit(alpha, 256 if num_values is None else num_values, dtype=dtype)
        filter_growth = 2.0 if filter_growth is None else filter_growth
        widths: dict[str, Any] = {"num_filters": num_filters, "filter_growth": filter_growth}
        widths |= {"attention": attention, "network_dtype": network_dtype}
        kinds: dict[str, Any] = {"transformer": transformer, "normalization": normalization}
        kinds |= {"mixing": "lu" if invertible_conv else None}
        layer = coupling_layer(network_fn, **kinds, **widths)
        prior = coupling_layer(network_of(ShallowConv), **widths) if split_prior else None
        options |= {"num_couplings": num_couplings, "prior": prior, "pixels": pixels}
        flow = multi_scale(image_shape, num_scales, layer, dtype=dtype, name=name, **options)
        super().__init__(**flow.parameters)

    @staticmethod
    def for_dataset(dataset: str, **overrides: Any) -> ImageFlow:
        """Returns the paper's model for a dataset (table 1 and section 4.1).

        #### Example

        >>> import tfp_realnvp as tfr
        >>> flow = tfr.RealNVPImage.for_dataset('celeb_a', num_blocks=1, num_filters=4)
        >>> flow.image_shape, flow.num_scales
        ((64, 64, 3), 5)

        Args:
          dataset: a key of `PAPER_CONFIGURATIONS`.
          **overrides: arguments of `RealNVPImage` that override the configuration. A smaller
            `image_shape` may reduce the number of scales.

        Raises:
          ValueError: if the paper has no such dataset.
        """
        names = sorted(PAPER_CONFIGURATIONS)
        validation.choice(dataset, names, f"{_NAME}: expected a dataset of the paper")
        configuration = {**PAPER_CONFIGURATIONS[dataset], **overrides}
        if "num_scales" not in overrides:
            allowed = max_num_scales(checked_image_shape(configuration["image_shape"], _NAME))
            configuration["num_scales"] = max(1, min(configuration["num_scales"], allowed))
        return RealNVPImage(**configuration)

    @staticmethod
    def compact(
        image_shape: Sequence[int | None],
        num_scales: int | None = None,
        num_filters: int = 64,
        *,
        num_couplings: int | None = None,
        **options: Any,
    ) -> ImageFlow:
        """Returns a model that reaches low bits/dim after brief training on a small machine.

        `compact` is a `RealNVPImage` with shallow networks that start at zero, split priors, and an
        `ActNorm` and an `InvertibleConv1x1` before each coupling. Each scale has 1.25 times as many
        feature maps as the previous scale. Each scale has two checkerboard and eight channel-wise
        couplings, except the last scale with three checkerboard couplings. A flow of one scale has
        five checkerboard couplings. For three channels `alpha` is 0.4, a nearly linear scaling for
        photographs. Otherwise `alpha` is 0.05, for images with many black or white pixels.
        `benchmarks/README.md` shows the measurements behind these options. Train `compact` with
        `Muon`, or with Adam at a high learning rate, 4e-3.

        #### Example

        >>> import tfp_realnvp as tfr
        >>> tfr.RealNVPImage.compact((32, 32, 3), num_filters=8).num_scales
        3

        Args:
          num_scales: number of scales; by default 3, or as many as the sides allow.
          num_couplings: as in `RealNVPImage`; the default is described above.
          image_shape, num_filters: as in `RealNVPImage`.
          **options: other options of `RealNVPImage`: `transformer`, `attention`, `alpha`,
            `num_values`, `network_dtype`, `dtype`, `name`, and the options of `image_flow`.

        Raises:
          ValueError, TypeError: as in `RealNVPImage`.
        """
        caller = f"{_NAME}.compact"
        check_options(RealNVPImage.__init__, {*options} - {"num_channel_couplings"}, caller)
        image_shape = checked_image_shape(image_shape, caller)
        if num_scales is None:
            num_scales = max(1, min(3, max_num_scales(image_shape)))
        is_single = num_scales == 1
        if num_couplings is None:
            num_couplings = 4 if is_single else 2
            if not is_single:
                # A channel-wise coupling needs a quarter of the multiplications of a checkerboard
                # coupling.
                options = {"num_channel_couplings": 8, **options}
        return RealNVPImage(
            image_shape,
            num_scales,
            num_filters=num_filters,
            filter_growth=None if is_single else 1.25,
            num_couplings=num_couplings,
            normalization="actnorm",
            invertible_conv=True,
            split_prior=not is_single,
            network_fn=network_of(ShallowConv),
            **{"alpha": 0.4 if image_shape[-1] == 3 else 0.05, **options},
        )

    @staticmethod
    def jet(
        image_shape: Sequence[int],
        *,
        patch_size: int = 4,
        num_couplings: int = 32,
        num_blocks: int = 2,
        width: int = 512,
        num_heads: int = 8,
        num_values: int = 256,
        network_dtype: str | None = None,
        dtype: Any = tf.float32,
        name: str = "real_nvp_image",
        **options: Any,
    ) -> ImageFlow:
        """Returns a Jet: couplings of patches, with vision transformers as networks.

        The couplings are `SigmoidAffine`, in groups of five. In each group, four couplings each
        transform a fixed random half of the channels of all patches. The fifth coupling transforms
        half of the patches. Over the groups, this half cycles through a checkerboard, vertical
        stripes and horizontal stripes, each followed by its complement. The flow has no
        normalization and no factored-out dimensions, and scales pixel values to [-1, 1] without a
        logit. Height and width are fixed, and must be multiples of `2 * patch_size`.

        A coupling scales half of the dimensions by at most 2, so n couplings cannot go below
        `log2(num_values / 2) + log2(2π) / 2 - n / 2` bits/dim: 0.3 for 256 levels and n = 16.

        For 64×64×3 images, the default model has 207,177,216 parameters. In the Jet paper, it
        reaches 3.72 bits/dim on ImageNet after 200 epochs. To train with that paper's recipe, run
        `python examples/train_paper.py --configuration=jet`.

        #### Example

        >>> import tfp_realnvp as tfr
        >>> flow = tfr.RealNVPImage.jet((32, 32, 3), num_couplings=16, width=64, num_heads=4)
        >>> masks = [part.mask for part in flow.bijectors if isinstance(part, tfr.Coupling)]
        >>> len(masks), masks[4]
        (16, SpatialMask(pattern='checkerboard', parity=0))

        Args:
          image_shape: (height, width, channels).
          patch_size: side of a patch.
          num_couplings: number of couplings.
          num_blocks: transformer blocks of each network.
          width: size of the tokens.
          num_heads: number of attention heads.
          num_values: number of gray levels.
          network_dtype, dtype, name: as in `RealNVPImage`.
          **options: the options of `image_flow`.

        Raises:
          ValueError: if an argument is out of range or has no effect.
          TypeError: if an argument has a wrong type or does not exist.

        #### References

        Kolesnikov, Pinto, Tschannen: Jet: a modern transformer-based normalizing flow. The
        configuration follows google-research/big_vision.
        """
        check_options(RealNVPImage.jet, options, f"{_NAME}.jet")
        channels = checked_image_shape(image_shape, f"{_NAME}.jet")[-1]
        network_fn = network_of(VisionTransformer, num_blocks=num_blocks, num_heads=num_heads)
        kinds: dict[str, Any] = {"transformer": "sigmoid_affine", "network_dtype": network_dtype}
        layer = coupling_layer(network_fn, width, **kinds)
        masks = jet_masks(num_couplings, channels * patch_size**2)
        pixels = PixelLogit(None, num_values, dtype=dtype)
        options |= {"pixels": pixels, "dtype": dtype, "name": name}
        return patch_flow(image_shape, patch_size, masks, layer, **options)
