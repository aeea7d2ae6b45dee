import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr


def _image(shape=(3, 4, 2)):
    return tf.constant(np.arange(1, 1 + np.prod(shape)).reshape(shape), tf.float32)


@pytest.mark.parametrize("parity", [0, 1])
def test_checkerboard_keeps_odd_sums_of_coordinates(parity):
    board = tfr.CheckerboardMask(parity).board(_image()).numpy()
    assert board.shape == (3, 4, 1)
    for row, column in np.ndindex(3, 4):
        assert board[row, column, 0] == (row + column + parity) % 2


def test_both_parities_are_complements():
    total = tfr.CheckerboardMask(0).board(_image()) + tfr.CheckerboardMask(1).board(_image())
    np.testing.assert_array_equal(total, np.ones([3, 4, 1]))


@pytest.mark.parametrize("parity", [0, 1])
def test_board_of_an_unknown_size(parity):
    mask = tfr.CheckerboardMask(parity)
    late = tf.function(
        mask.board, input_signature=[tf.TensorSpec([None, None, None, 2], tf.float32)]
    )
    for size in ((3, 4), (5, 2)):
        image = tf.zeros([1, *size, 2])
        np.testing.assert_array_equal(late(image), mask.board(image))


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64, tf.bfloat16])
def test_board_has_the_dtype_of_the_image(dtype):
    assert tfr.CheckerboardMask(0).board(tf.zeros([2, 2, 1], dtype)).dtype == dtype


@pytest.mark.parametrize("parity", [0, 1])
def test_checkerboard_split_restrict_merge(parity):
    mask, image = tfr.CheckerboardMask(parity), _image()
    board = mask.board(image)
    kept, changed = mask.split(image)
    np.testing.assert_array_equal(kept, board * image)
    np.testing.assert_array_equal(mask.merge(kept, changed), image)
    np.testing.assert_array_equal(mask.restrict(image), (1 - board) * image)
    assert mask.changed_channels(3) == 3


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


@pytest.mark.parametrize("make", [tfr.CheckerboardMask, tfr.ChannelMask])
def test_equality_hash_and_repr(make):
    assert make(0) == make(0) and hash(make(0)) == hash(make(0))
    assert make(0) != make(1) and make() == make(0)
    assert repr(make(1)) == f"{make.__name__}(parity=1)"


def test_masks_of_two_kinds_are_unequal():
    assert tfr.CheckerboardMask(0) != tfr.ChannelMask(0)


def test_odd_channels():
    with pytest.raises(ValueError, match="expected an even number of channels, got 3"):
        tfr.ChannelMask(0).split(tf.zeros([2, 2, 3]))


@pytest.mark.parametrize("parity", [0.5, 2, -1, "0", None, [0, 1]])
@pytest.mark.parametrize("make", [tfr.CheckerboardMask, tfr.ChannelMask])
def test_parities_are_0_and_1(make, parity):
    with pytest.raises(ValueError, match="parity: expected 0 or 1"):
        make(parity)
