"""Masks of coupling layers. Masks split an event into a kept and a transformed half."""

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import configurable, validation
from tfp_realnvp.internal.batch_dims import flatten_batch, sides, unflatten_batch
from tfp_realnvp.internal.checkerboard import check_parity, checkerboard

PATTERNS = ("checkerboard", "vertical_stripes", "horizontal_stripes")


class Mask(configurable.Configurable, abc.ABC):
    r"""Splits an event into a half that a coupling keeps and a half that the coupling transforms.

    | method | takes | returns |
    | --- | --- | --- |
    | `split` | event [..., H, W, C] | kept [..., H, W, k] and changed [..., H, W, c] |
    | `restrict` | [..., H, W, P c] | the same shape, zero at kept positions |
    | `merge` | kept [..., H, W, k] and changed [..., H, W, c] | event [..., H, W, C] |
    | `changed_channels` | C | c |

    For vectors, H and W are missing. The network's input is the kept half, with k = C - c channels,
    or k = C if c = C. `merge` inverts `split`, and splitting a merged event again gives the same
    kept half. In the docstrings, `b` is the binary mask of eq. 9 in the Real NVP paper.

    To save your own mask, decorate the class with `keras.saving.register_keras_serializable()`.
    Store each constructor argument as an attribute of the same name, or override `get_config`.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> class KeepFirst(tfr.Mask):
    ...   def split(self, x):
    ...     return x[..., :1], x[..., 1:]
    ...   def merge(self, kept, changed):
    ...     return tf.concat([kept, changed], axis=-1)
    ...   def changed_channels(self, channels):
    ...     return channels - 1
    >>> network = tfr.DenseResNet(2 * 4, num_filters=8)
    >>> coupling = tfr.AffineCoupling(KeepFirst(), network, event_ndims=1)
    >>> z, ildj = coupling.inverse_and_log_det(tf.random.normal([7, 5]))
    >>> z.shape, ildj.shape
    (TensorShape([7, 5]), TensorShape([7]))
    """

    @abc.abstractmethod
    def split(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the network's input, and the values that the coupling transforms."""

    def restrict(self, x: tf.Tensor) -> tf.Tensor:
        """Returns `x`, parameters or log dets, with zeros at any kept positions that it contains.

        By default, returns `x` itself, for masks whose changed half contains no kept positions.
        """
        return x

    @abc.abstractmethod
    def merge(self, kept: tf.Tensor, changed: tf.Tensor) -> tf.Tensor:
        """Returns the event, merged from the kept and the transformed half."""

    @abc.abstractmethod
    def changed_channels(self, channels: int) -> int:
        """Returns the number of transformed channels of an event with `channels` channels."""

    def arrange(self, condition: tf.Tensor) -> tf.Tensor:
        """Returns a condition image [B, H, W, K] with its positions where `split` puts them."""
        return condition


@dataclasses.dataclass(unsafe_hash=True)
class CheckerboardMask(Mask):
    """Spatial checkerboard (paper, section 3.4 and figure 3, left).

    The mask fits images of any size.

    Attributes:
      parity: 0, as in the paper, keeps positions with an odd row + column; 1 keeps the others.

    Raises:
      ValueError: if `parity` is neither 0 nor 1.

    #### Example

    >>> import numpy as np, tensorflow as tf, tfp_realnvp as tfr
    >>> mask = tfr.CheckerboardMask(parity=0)
    >>> mask.split(tf.ones([1, 2, 2, 1]))[0].numpy()[0, :, :, 0].tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """

    parity: int = 0

    def __post_init__(self) -> None:
        self.parity = check_parity(self.parity)

    def board(self, image: tf.Tensor) -> tf.Tensor:
        """Returns `b` as [H, W, 1] in the dtype of `image`, [..., H, W, C]."""
        return checkerboard(image, self.parity)

    def split(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns `(b * x, x)`."""
        return x * checkerboard(x, self.parity), x

    def restrict(self, x: tf.Tensor) -> tf.Tensor:
        """Returns `(1 - b) * x`."""
        return x * checkerboard(x, 1 - self.parity)

    def merge(self, kept: tf.Tensor, changed: tf.Tensor) -> tf.Tensor:
        """Returns `kept + (1 - b) * changed`."""
        # The gradient of `add_n` is cheaper than the gradient of `+`, which can broadcast.
        return tf.add_n([kept, self.restrict(changed)])

    def changed_channels(self, channels: int) -> int:
        """Returns `channels`: every channel has transformed positions."""
        return channels


@dataclasses.dataclass(unsafe_hash=True)
class ChannelMask(Mask):
    """Channel-wise mask (paper, section 3.4 and figure 3, right), for images or vectors.

    `merge` restores the order of the channels.

    Attributes:
      parity: 0 keeps the first channels and transforms the last ones; 1 does the opposite.
      num_first: number of first channels, or a fraction of all channels in (-1, 1). A negative
        value counts from the end, as in a slice. Defaults to half.
      permutation: order of the channels before the split. Defaults to 0, 1, 2, ...

    Raises:
      ValueError, TypeError: if an attribute is out of range or has a wrong type.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> kept, changed = tfr.ChannelMask(parity=1).split(tf.constant([[[[1., 2.]]]]))
    >>> kept.numpy().item(), changed.numpy().item()
    (2.0, 1.0)
    >>> kept, changed = tfr.ChannelMask(permutation=[2, 0, 1, 3]).split(tf.range(4))
    >>> kept.numpy().tolist(), changed.numpy().tolist()
    ([2, 0], [1, 3])
    """

    parity: int = 0
    _: dataclasses.KW_ONLY
    num_first: float | None = None
    permutation: Sequence[int] | None = None

    def __post_init__(self) -> None:
        self.parity = check_parity(self.parity)
        if self.num_first is not None:
            expected = "ChannelMask: expected num_first, a whole number or a fraction in (-1, 1)"
            validation.real(self.num_first, lambda x: abs(x) < 1 or x % 1 == 0, expected)
        if (order := self.permutation) is not None:
            expected = "ChannelMask: expected a permutation of 0, 1, ..., n - 1"
            is_permutation = np.array_equal(np.sort(order), np.arange(np.size(order)))
            validation.require(is_permutation, expected, order)
            self.permutation = tuple(map(int, order))

    def split(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the kept and the transformed channels, each [..., c]."""
        sizes = self._sizes(x.shape[-1])
        if self.permutation is not None:
            x = tf.gather(x, self.permutation, axis=-1)
        first, second = tf.split(x, 2 if self.num_first is None else sizes, axis=-1)
        return (second, first) if self.parity else (first, second)

    def merge(self, kept: tf.Tensor, changed: tf.Tensor) -> tf.Tensor:
        """Returns both halves in the original order, [..., C]."""
        x = tf.concat([changed, kept] if self.parity else [kept, changed], axis=-1)
        order = self.permutation
        return x if order is None else tf.gather(x, np.argsort(order), axis=-1)

    def changed_channels(self, channels: int) -> int:
        """Returns the number of transformed channels; raises `ValueError` if it is invalid."""
        return self._sizes(channels)[1 - self.parity]

    def _sizes(self, channels: int) -> list[int]:
        if (order := self.permutation) is not None:
            expected = f"ChannelMask: expected {len(order)} channels, the length of its permutation"
            validation.require(channels == len(order), expected, channels)
        if self.num_first is None:
            expected = "ChannelMask: expected an even number of channels"
            validation.require(channels % 2 == 0, expected, channels)
            return [channels // 2, channels // 2]
        num_first = self.num_first
        num_first = round(num_first * channels) if abs(num_first) < 1 else int(num_first)
        num_first += channels if num_first < 0 else 0
        sizes = [num_first, channels - num_first]
        if sizes[1 - self.parity] < 1 or min(sizes) < 0:
            raise ValueError(f"{self}: expected a channel to transform, got {channels} channels.")
        return sizes


@dataclasses.dataclass(unsafe_hash=True)
class SpatialMask(Mask):
    """Keeps half of the H W positions. Packs each half, H W / 2 positions, in an image [H, W, C/2].

    | pattern | parity 0 keeps the positions of |
    | --- | --- |
    | `'checkerboard'` | an even row + column |
    | `'vertical_stripes'` | an even column |
    | `'horizontal_stripes'` | an even row |

    `split` reads the positions of each half row by row, and writes the C channels of a position to
    two neighboring positions of an image [H, W, C/2]. Of these two, the first one gets a condition
    image's values at the kept position, the second one those at the transformed position.

    Attributes:
      pattern: `'checkerboard'`, `'vertical_stripes'` or `'horizontal_stripes'`.
      parity: 0, as in the table, or 1 to keep the other half.

    Raises:
      ValueError: if `pattern` or `parity` has another value.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> image = tf.reshape(tf.range(8), [2, 2, 2])
    >>> kept, changed = tfr.SpatialMask('vertical_stripes').split(image)
    >>> kept.numpy()[..., 0].tolist(), changed.numpy()[..., 0].tolist()
    ([[0, 1], [4, 5]], [[2, 3], [6, 7]])

    #### References

    Kolesnikov, Pinto, Tschannen: Jet.
    """

    pattern: str = "checkerboard"
    parity: int = 0

    def __post_init__(self) -> None:
        validation.choice(self.pattern, PATTERNS, "SpatialMask: expected a pattern")
        self.parity = check_parity(self.parity)

    def split(self, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the kept and the transformed half, [..., H, W, C/2]; H, W and C must be even."""
        are_even = all(side is None or side % 2 == 0 for side in x.shape[-3:-1])
        expected = "SpatialMask: expected images of an even height and width"
        validation.require(are_even, expected, tuple(x.shape))
        (height, width), half = sides(x), self.changed_channels(x.shape[-1])
        positions = tf.reshape(flatten_batch(x), [-1, height * width, 2 * half])
        halves = tf.split(tf.gather(positions, self._order(height, width), axis=1), 2, axis=1)
        kept, changed = (tf.reshape(part, [-1, height, width, half]) for part in halves)
        return unflatten_batch(kept, like=x), unflatten_batch(changed, like=x)

    def merge(self, kept: tf.Tensor, changed: tf.Tensor) -> tf.Tensor:
        """Returns both halves at their original positions, [..., H, W, C]."""
        (height, width), channels = sides(kept), 2 * kept.shape[-1]
        shape = [-1, height * width // 2, channels]
        halves = [tf.reshape(flatten_batch(part), shape) for part in (kept, changed)]
        order = tf.argsort(self._order(height, width))
        x = tf.gather(tf.concat(halves, axis=1), order, axis=1)
        return unflatten_batch(tf.reshape(x, [-1, height, width, channels]), like=kept)

    def arrange(self, condition: tf.Tensor) -> tf.Tensor:
        """Returns the condition at a kept and at a transformed position in turn, [B, H, W, K]."""
        (height, width), channels = sides(condition), condition.shape[-1]
        order = tf.reshape(tf.transpose(tf.reshape(self._order(height, width), [2, -1])), [-1])
        positions = tf.reshape(condition, [-1, height * width, channels])
        return tf.reshape(tf.gather(positions, order, axis=1), [-1, height, width, channels])

    def changed_channels(self, channels: int) -> int:
        """Returns half of the channels; raises `ValueError` if their number is odd."""
        expected = "SpatialMask: expected an even number of channels"
        validation.require(channels % 2 == 0, expected, channels)
        return channels // 2

    def _order(self, height: int, width: int) -> tf.Tensor:
        """Returns all position indices, [H W]: kept positions first, then transformed positions."""
        rows, columns = tf.meshgrid(tf.range(height), tf.range(width), indexing="ij")
        sums = {"checkerboard": rows + columns, "vertical_stripes": columns}.get(self.pattern, rows)
        is_changed = tf.reshape((sums + self.parity) % 2, [-1])
        return tf.argsort(is_changed, stable=True)
