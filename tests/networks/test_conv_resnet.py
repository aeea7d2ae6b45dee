import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp.networks import conv_resnet
from tfp_realnvp.networks.functional import batch_norm, weight_norm

pytestmark = [pytest.mark.quick, pytest.mark.core]

_MAKERS = {
    "resnet": lambda **kwargs: tfr.ConvResNet(4, 1, 6, **kwargs),
    "resnet_board": lambda **kwargs: tfr.ConvResNet(4, 2, 6, checkerboard_parity=1, **kwargs),
    "resnet_no_block": lambda **kwargs: tfr.ConvResNet(4, 0, 6, **kwargs),
    "resnet_attention": lambda **kwargs: tfr.ConvResNet(4, 1, 6, num_heads=2, **kwargs),
    "shallow": lambda **kwargs: tfr.ShallowConv(4, 6, **kwargs),
    "shallow_board": lambda **kwargs: tfr.ShallowConv(4, 6, checkerboard_parity=0, **kwargs),
    "shallow_attention": lambda **kwargs: tfr.ShallowConv(4, 6, num_heads=2, **kwargs),
}
each_network = pytest.mark.parametrize("name", _MAKERS)


def _built(layer):
    layer.build((None, None, None, 2))
    return ft.randomize(layer)


def _network(name, /, **kwargs):
    return _built(_MAKERS[name](**kwargs))


def _board(images, parity):
    """Returns the mask of the kept positions, number by number."""
    board = np.zeros([*images.shape[:-1], 1])
    for image, row, column in np.ndindex(*images.shape[:-1]):
        board[image, row, column] = (row + column + parity) % 2
    return board


class _Reference:
    """A `ConvResNet` layer by layer, from its variables.

    `test_functional.py` and `test_attention.py` compare its functions with their definitions.
    Calling it returns the outputs and the moving statistics after it, in the order of the layers.
    """

    def __init__(self, network, training):
        self.network, self.training = network, training

    def __call__(self, x, condition=None):
        v, parity = self.network, self.network.checkerboard_parity
        self.moved = []
        x = self._norm(x, v.input_offset, v.input_mean, v.input_variance)
        inputs = tf.concat([x, -x], axis=-1) * (1 if parity is None else 2)
        if parity is not None:
            # The board is an input channel.
            board = _board(x, parity)
            inputs = tf.concat([inputs, board], axis=-1)
        h = self._conv(tf.nn.relu(inputs), v.input_kernel, v.input_scale) + v.input_bias
        if v.takes_image:
            h += tf.nn.conv2d(condition, v.condition_kernel.value, 1, "SAME")
        if v.takes_vector:
            h += (condition @ v.condition_kernel[:, 0])[:, None, None]
        total = self._skip(h, 0)
        for block in range(v.num_blocks):
            x = self._block_conv(self._activation(h, 2 * block), 2 * block)
            x = self._block_conv(self._activation(x, 2 * block + 1), 2 * block + 1)
            h = h + x + v.block_biases[block]
            total += self._skip(h, block + 1)
        if v.num_heads:
            total = v.attention(total)
        x = self._activation(total, 2 * v.num_blocks)
        outputs = self._pointwise(x, v.output_kernel, v.output_scales) + v.output_bias
        return outputs if parity is None else outputs * (1 - board), self.moved

    def _conv(self, x, kernel, scale):
        kernel, scale = tf.convert_to_tensor(kernel), tf.convert_to_tensor(scale)
        return tf.nn.conv2d(x, weight_norm(kernel, scale), 1, "SAME")

    def _pointwise(self, x, kernel, scale):
        return self._conv(x, kernel[None, None], scale)

    def _block_conv(self, x, index):
        return self._conv(x, self.network.block_kernels[index], self.network.block_scales[index])

    def _skip(self, h, index):
        v = self.network
        x = self._pointwise(h, v.skip_kernels[index], v.skip_scales[index])
        return x + v.skip_biases[index]

    def _activation(self, x, index):
        v = self.network
        x = self._norm(x, v.offsets[index], v.moving_means[index], v.moving_variances[index])
        return tf.nn.relu(x)

    def _norm(self, x, offset, mean, variance):
        options = {"training": self.training, "epsilon": self.network.epsilon}
        x, *moments = batch_norm(x, *map(tf.convert_to_tensor, (offset, mean, variance)), **options)
        pairs, rho = zip((mean, variance), moments, strict=True), self.network.momentum
        self.moved.append([rho * before + (1 - rho) * after for before, after in pairs])
        return x


def _statistics(network):
    """Returns the moving statistics in the order of the layers."""
    return [
        (network.input_mean, network.input_variance),
        *zip(tf.unstack(network.moving_means), tf.unstack(network.moving_variances), strict=True),
    ]


def _value_and_gradients(function, sources, variables):
    with tf.GradientTape() as tape:
        tape.watch(sources)
        outputs = function(*sources)
    upstream = ft.normal(outputs.shape, outputs.dtype, seed=8)
    return outputs, tape.gradient(outputs, [*sources, *variables], output_gradients=upstream)


_CONDITION_SHAPES = {"none": None, "vector": (3,), "image": (None, None, 2)}


def _given(kind, images):
    """Returns the keyword arguments of a call with a kind of condition, for [B, H, W, C] images."""
    batch, height, width, _ = images.shape
    shape = {"none": None, "vector": [batch, 3], "image": [batch, height, width, 2]}[kind]
    return {"conditional_input": ft.normal(shape, images.dtype, seed=4)} if shape else {}


_BOARDS = [(None, 2), (0, 0), (0, 2), (1, 0)]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("condition", "parity", "num_blocks", "num_heads"),
    [
        *[("none", None, 0, 0), ("none", 1, 2, 0), ("vector", 1, 1, 1), ("image", None, 2, 0)],
        *ft.full(*(("none", parity, blocks, 0) for parity, blocks in _BOARDS)),
        *ft.full(
            ("vector", None, 2, 0), ("vector", 1, 1, 0), ("image", 1, 1, 0), ("none", 0, 2, 2)
        ),
    ],
)
def test_against_layer_by_layer(condition, parity, num_blocks, num_heads, training, monkeypatch):
    monkeypatch.setattr(conv_resnet, "_MIN_HALVED_POSITIONS", 8)
    options = {"num_heads": num_heads, "checkerboard_parity": parity, "dtype": "float64"}
    options["conditional_event_shape"] = _CONDITION_SHAPES[condition]
    network = _built(tfr.ConvResNet(4, num_blocks, 6, momentum=0.8, **options))
    variables = [variable.value for variable in network.trainable_variables]
    reference = _Reference(network, training)

    def call(x, conditional_input=None):
        return network(x, training=training, conditional_input=conditional_input)

    # With many positions or few, and with an even or an odd side, inference takes other ways.
    for shape in [(4, 6)] if training else [(4, 6), (2, 4), (2, 2), (5, 3), (1, 3)]:
        x = ft.normal([3, *shape, 2], tf.float64)
        sources = [x, *_given(condition, x).values()]
        expected, expected_gradients = _value_and_gradients(
            lambda *sources: reference(*sources)[0], sources, variables
        )
        moved = reference.moved
        actual, gradients = _value_and_gradients(call, sources, variables)
        assert np.abs(expected).max() > 1e-2
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-10)
        ft.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-10)
        ft.assert_close(_statistics(network), moved, rtol=1e-10, atol=1e-12)


# What all networks have in common.


@each_network
def test_shapes(name):
    layer, unbuilt = _network(name), _MAKERS[name]()
    unbuilt(ft.normal([1, 4, 4, 2]))
    assert len(unbuilt.variables) == len(layer.variables)
    assert layer.compute_output_shape((None, 8, 6, 2)) == (None, 8, 6, 4)
    late = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 2], tf.float32)])
    # A second batch size, and other heights and widths.
    for shape in ((1, 4, 4, 2), (3, 4, 4, 2), (2, 7, 5, 2)):
        x = ft.normal(shape)
        outputs = layer(x)
        assert outputs.shape == (*shape[:-1], 4)
        np.testing.assert_allclose(late(x), outputs, rtol=1e-4, atol=1e-5)


_CONDITIONAL = [
    (name, kind) for name in ("resnet_board", "shallow") for kind in ("vector", "image")
]


@pytest.mark.parametrize(
    ("name", "condition"), [*((name, "none") for name in _MAKERS), *_CONDITIONAL]
)
@pytest.mark.parametrize("training", [False, True])
def test_mixed_precision(name, condition, training):
    options = {"conditional_event_shape": _CONDITION_SHAPES[condition]}
    layer, single = _network(name, dtype="mixed_bfloat16", **options), _network(name, **options)
    assert {str(variable.dtype) for variable in layer.variables} == {"float32"}
    x = ft.normal([2, 4, 4, 2])
    single.set_weights(layer.get_weights())
    options = {"training": True} if training and "resnet" in name else {}
    options |= _given(condition, x)
    outputs, expected = layer(x, **options), single(x, **options)
    assert outputs.dtype == tf.bfloat16
    error = np.abs(tf.cast(outputs, tf.float32) - expected)
    assert error.max() < 0.1 * np.abs(expected).max() + 0.05


@pytest.mark.parametrize("name", ["resnet_attention", "shallow_board"])
def test_channels_are_last_whatever_keras_prefers(name):
    x, network = ft.normal([2, 4, 6, 2]), _network(name)
    expected = network(x)
    keras.config.set_image_data_format("channels_first")
    try:
        other = _network(name)
        other(x)
        other.set_weights(network.get_weights())
        np.testing.assert_array_equal(other(x), expected)
    finally:
        keras.config.set_image_data_format("channels_last")


@pytest.mark.parametrize(
    ("condition", "parity", "num_heads"),
    [
        *[("none", parity, 0) for parity in (None, 0, 1)],
        *[("vector", 1, 0), ("image", None, 0), ("vector", 0, 2)],
    ],
)
def test_shallow_against_layer_by_layer(condition, parity, num_heads):
    options = {"num_heads": num_heads, "checkerboard_parity": parity, "dtype": "float64"}
    options["conditional_event_shape"] = _CONDITION_SHAPES[condition]
    network = _built(tfr.ShallowConv(4, 6, **options))
    x = ft.normal([3, 4, 6, 2], tf.float64)
    given = _given(condition, x)
    inputs = x if parity is None else tf.concat([x, _board(x, parity)], axis=-1)
    weights = {variable.path.split("/", 1)[1]: variable.numpy() for variable in network.variables}

    def conv(x, name):
        return tf.nn.conv2d(x, weights[f"{name}/kernel"], 1, "SAME") + weights[f"{name}/bias"]

    def shift(index):
        if condition != "vector":
            return 0.0
        return (given["conditional_input"] @ weights["condition_kernel"][:, index])[:, None, None]

    h = conv(inputs, "conv1") + shift(0)
    if condition == "image":
        h += tf.nn.conv2d(given["conditional_input"], weights["condition_conv/kernel"], 1, "SAME")
    h = tf.nn.relu(conv(tf.nn.relu(h), "conv2") + shift(1))
    if num_heads:
        h = network.attention(h)
    np.testing.assert_allclose(network(x, **given), conv(h, "conv3"), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("name", "condition"), _CONDITIONAL)
def test_a_missing_condition(name, condition):
    layer = _network(name, conditional_event_shape=_CONDITION_SHAPES[condition])
    with pytest.raises(ValueError, match=r"expected a conditional_input \[batch, ...\].*got None"):
        layer(ft.normal([2, 4, 4, 2]))


@each_network
def test_a_network_is_constructed_frozen(name):
    network = _network(name, trainable=False, conditional_event_shape=[None, None, 2])
    assert network.variables and not any(v.trainable for v in network.variables)
