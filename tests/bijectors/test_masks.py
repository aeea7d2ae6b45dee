import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp.saving import keras_config

pytestmark = pytest.mark.quick


def _image(shape=(3, 4, 2)):
    return tf.constant(np.arange(1, 1 + np.prod(shape)).reshape(shape), tf.float32)


@pytest.mark.parametrize("parity", [0, 1])
def test_checkerboard_split_restrict_merge(parity):
    mask, image = tfr.CheckerboardMask(parity), _image()
    board = mask.board(image)
    assert board.shape == (3, 4, 1) and board.dtype == image.dtype
    for row, column in np.ndindex(3, 4):
        assert board[row, column, 0] == (row + column + parity) % 2
    kept, changed = mask.split(image)
    np.testing.assert_array_equal(kept, board * image)
    np.testing.assert_array_equal(mask.merge(kept, changed), image)
    np.testing.assert_array_equal(mask.restrict(image), (1 - board) * image)
    assert mask.changed_channels(3) == 3
    same, other = tfr.CheckerboardMask(parity), tfr.CheckerboardMask(1 - parity)
    assert mask == same and hash(mask) == hash(same) and mask != other
    assert mask != tfr.ChannelMask(parity) and repr(mask) == f"CheckerboardMask(parity={parity})"


@pytest.mark.parametrize("parity", [0, 1])
def test_channel_split_and_merge(parity):
    mask, image = tfr.ChannelMask(parity), _image((2, 2, 4))
    kept, changed = mask.split(image)
    first, second = image[..., :2], image[..., 2:]
    np.testing.assert_array_equal(kept, second if parity else first)
    np.testing.assert_array_equal(changed, first if parity else second)
    np.testing.assert_array_equal(mask.merge(kept, changed), image)
    np.testing.assert_array_equal(mask.restrict(changed), changed)
    assert mask.changed_channels(4) == 2
    with pytest.raises(ValueError, match="expected an even number of channels, got 3"):
        mask.split(tf.zeros([2, 2, 3]))


def test_permuted_channels():
    order = [2, 5, 0, 1, 4, 3]
    mask, image = tfr.ChannelMask(1, permutation=order, num_first=2), _image((2, 2, 6))
    kept, changed = mask.split(image)
    np.testing.assert_array_equal(changed, image.numpy()[..., order[:2]])
    np.testing.assert_array_equal(kept, image.numpy()[..., order[2:]])
    np.testing.assert_array_equal(mask.merge(kept, changed), image)
    assert mask == tfr.ChannelMask(1, permutation=np.array(order), num_first=2)
    assert mask != tfr.ChannelMask(1, num_first=2) and "permutation=(2, 5" in repr(mask)
    with pytest.raises(ValueError, match="6 channels, the length of its permutation, got 4"):
        mask.split(_image((2, 2, 4)))


_IS_FIRST = {
    "checkerboard": lambda row, column: (row + column) % 2 == 0,
    "vertical_stripes": lambda row, column: column % 2 == 0,
    "horizontal_stripes": lambda row, column: row % 2 == 0,
}


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("pattern", _IS_FIRST)
def test_spatial_mask(pattern, parity):
    mask, images = tfr.SpatialMask(pattern, parity), _image((3, 2, 4, 6, 2))
    is_kept = np.array([_IS_FIRST[pattern](*p) != parity for p in np.ndindex(4, 6)])
    by_position = images.numpy().reshape(3, 2, 24, 2)
    for part, where in zip(mask.split(images), (is_kept, ~is_kept), strict=True):
        # Positions row by row, and of each one half of its channels after the other.
        expected = by_position[:, :, where].reshape(3, 2, 4, 6, 1)
        np.testing.assert_array_equal(part, expected)
    np.testing.assert_array_equal(mask.merge(*mask.split(images)), images)
    assert mask.changed_channels(6) == 3
    same, other = tfr.SpatialMask(pattern, parity), tfr.SpatialMask(pattern, 1 - parity)
    assert mask == same and hash(mask) == hash(same) and mask != other


@pytest.mark.parametrize("pattern", _IS_FIRST)
def test_a_condition_image_is_arranged_as_the_halves_of_a_spatial_mask(pattern):
    mask, positions = tfr.SpatialMask(pattern, 1), _image((1, 4, 6, 1))
    kept, changed = (half[..., 0] for half in mask.split(tf.repeat(positions, 2, axis=-1)))
    arranged = mask.arrange(positions)[..., 0]
    np.testing.assert_array_equal(arranged[..., ::2], kept[..., ::2])
    np.testing.assert_array_equal(arranged[..., 1::2], changed[..., 1::2])


@pytest.mark.parametrize("shape", [(3, 4, 2), (4, 3, 2), (2, 2, 3)])
def test_spatial_mask_of_odd_sizes(shape):
    with pytest.raises(ValueError, match=r"SpatialMask: expected .*even"):
        tfr.SpatialMask().split(_image(shape))


@keras.saving.register_keras_serializable(package="tests")
class Third(tfr.Mask):
    """A user's mask, which changes one channel of three."""

    def __init__(self, index=0):
        self.index = index

    def split(self, x):
        x = tf.roll(x, -self.index, axis=-1)
        return x[..., 1:], x[..., :1]

    def merge(self, kept, changed):
        return tf.roll(tf.concat([changed, kept], axis=-1), self.index, axis=-1)

    def changed_channels(self, channels):
        return channels // 3


def test_a_users_mask():
    layer = tfr.coupling_layer(ft.shallow_conv, 4, transformer="rational_quadratic_spline")
    masks = [Third(index) for index in range(3)]
    flow = ft.randomize(tfr.patch_flow((2, 2, 3), 1, masks, layer))
    x = ft.normal([2, 2, 3])
    z, ildj = flow.inverse_and_log_det(x)
    np.testing.assert_allclose(ildj, ft.jacobian_log_det(flow.inverse, x), rtol=1e-3, atol=1e-4)
    assert np.abs(z - x).min() > 0
    np.testing.assert_allclose(flow.forward(tf.identity(z)), x, atol=1e-4)
    config = keras_config.serialize(flow, "flow")
    loaded = keras_config.deserialize(config, tfr.ImageFlow)
    assert [part.mask.index for part in loaded.bijectors] == [0, 1, 2]


def test_no_mask():
    class Incomplete(tfr.Mask):
        def split(self, x):
            return x, x

    methods = r"`tfr.Mask` with the methods split, restrict, merge and changed_channels"
    for mask in (tfr.CheckerboardMask, "checkerboard", [1, 0], Third):
        with pytest.raises(TypeError, match=methods):
            tfr.AffineCoupling(mask, tf.identity)
    with pytest.raises(TypeError, match=r"Incomplete.*changed_channels.*merge"):
        Incomplete()
