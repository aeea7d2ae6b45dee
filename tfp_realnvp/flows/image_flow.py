"""`ImageFlow`, a whole flow of images, and `image_flow`, which composes one from layers."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfp_realnvp.bijectors import PixelLogit, Squeeze
from tfp_realnvp.bijectors.flow_chain import ComposedFlow
from tfp_realnvp.flows.conditional_flow import conditional_flow
from tfp_realnvp.flows.coupling_layer import ConditionShape
from tfp_realnvp.internal import validation


class ImageFlow(ComposedFlow):
    r"""A `FlowChain` that maps between latents and images, with attributes for shape and scales.

    `RealNVPImage` is a subclass; `multi_scale`, `patch_flow` and `RealNVPImage.jet` return an
    `ImageFlow`. Latents have the shape of the image; `split_latents` splits latents by scale.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> flow = tfr.RealNVPImage((8, 8, 3), num_scales=2, num_blocks=0, num_filters=4)
    >>> type(flow).__name__, flow.image_shape, flow.num_scales, flow.num_values
    ('RealNVPImage', (8, 8, 3), 2, 256)
    >>> [latents.shape for latents in flow.split_latents(flow.inverse(tf.ones([1, 8, 8, 3])))]
    [TensorShape([1, 4, 4, 6]), TensorShape([1, 4, 4, 6])]

    Attributes:
      image_shape: (height, width, channels).
      num_scales: number of scales.
      has_fixed_size: whether images must have the height and width of `image_shape`.
    """

    def __init__(
        self,
        bijectors: Sequence[tfb.Bijector],
        image_shape: Sequence[int | None],
        num_scales: int = 1,
        *,
        has_fixed_size: bool = False,
        name: str = "image_flow",
        **options: Any,
    ) -> None:
        """Constructs the flow from its bijectors.

        Args:
          image_shape, num_scales, has_fixed_size: see the attributes above. Height and width may be
            `None`.
          bijectors, name, **options: as in `FlowChain`, for images.

        Raises:
          TypeError: as in `FlowChain`.
          ValueError: as in `FlowChain`, or if `image_shape` is not the shape of an image.
        """
        self.image_shape = checked_image_shape(image_shape, name)
        self.num_scales = validation.count(num_scales, "num_scales", 1, name)
        self.has_fixed_size = has_fixed_size
        names = "image_shape", "num_scales", "has_fixed_size"
        attributes = {attribute: getattr(self, attribute) for attribute in names}
        super().__init__(bijectors, 3, name, options, **attributes)

    @property
    def num_values(self) -> int | None:
        """The number of gray levels; `None` if events are any real numbers."""
        return next((p.num_values for p in self.bijectors if isinstance(p, PixelLogit)), None)

    def split_latents(self, latents: tf.Tensor) -> list[tf.Tensor]:
        """Returns the latents by scale, the finest first.

        Args:
          latents: latents [..., H, W, C], the result of `inverse`.

        Returns:
          For each scale i = 1 … L - 1, the factored-out half, [..., H / 2ⁱ, W / 2ⁱ, 2ⁱ C]; then the
          coarsest latents, [..., H / 2ᴸ⁻¹, W / 2ᴸ⁻¹, 2ᴸ⁻¹ C].

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
        """Inverts `split_latents`: joins latents by scale to [..., H, W, C].

        Args:
          by_scale: `num_scales` tensors, the finest scale first.

        Raises:
          ValueError: if the number of tensors is not `num_scales`.
        """
        expected = f"{self.name}: expected latents of {self.num_scales} scales"
        validation.require(len(by_scale) == self.num_scales, expected, len(by_scale))
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


def image_flow(
    image_shape: Sequence[int | None],
    layers: Callable[[ConditionShape], Sequence[tfb.Bijector]],
    *,
    num_scales: int = 1,
    has_fixed_size: bool = False,
    pixels: tfb.Bijector | None = None,
    dtype: Any = tf.float32,
    name: str = "image_flow",
    **options: Any,
) -> ImageFlow:
    """Composes an image flow from layers, an embedding of the condition, and a map to pixels.

    Args:
      image_shape, num_scales, has_fixed_size: as in `ImageFlow`.
      layers: a function that takes the shape of the embedded condition, or `None`, and returns
        bijectors in order from data to latents.
      pixels: a bijector between the layers and the data, such as a `PixelLogit`. By default, events
        are unbounded real numbers.
      dtype: dtype of values and log dets, `tf.float32` or `tf.float64`.
      name: name scope of the operations.
      **options: `conditional_event_shape`: shape of the condition of an image, [K] or [H, W, K].
        The flow then needs a `conditional_input` [..., K] or [..., H, W, K]. A condition image has
        the height and width of the data, and is squeezed like the data. `num_classes`: the flow
        needs a `conditional_input` of labels [...] in [0, num_classes). `condition_dropout`: the
        probability with which `FlowModel.fit` leaves out the condition of an image.
        `conditional_input=None` then gives the density without a condition. `embedding_size`:
        length of the embedding of labels and vectors; by default 64. `recompute`: as in
        `FlowChain`. `validate_args`: whether to assert that values and log dets are finite, and
        that data are in the range of a `PixelLogit`.

    Raises:
      TypeError, ValueError: if an argument is invalid or has no effect.
    """
    options |= {"num_scales": num_scales, "has_fixed_size": has_fixed_size}
    options |= {"image_shape": image_shape, "dtype": dtype, "name": name}
    return conditional_flow(ImageFlow, layers, pixels, **options)


def checked_image_shape(image_shape: Sequence[int | None], caller: str) -> tuple[Any, ...]:
    """Returns a valid (height, width, channels), or raises an error."""
    expected = f"{caller}: expected an image_shape (height, width, channels)"
    is_shape = hasattr(image_shape, "__len__") and len(image_shape) == 3
    validation.require(is_shape and image_shape[-1] is not None, expected, image_shape)
    expected = f"{caller}: expected positive integers in image_shape={image_shape!r}"
    return tuple(None if n is None else validation.integer(n, 1, expected) for n in image_shape)
