import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr

_MAKERS = {
    "resnet": lambda **kwargs: tfr.ConvResNet(4, 1, 6, **kwargs),
    "resnet_board": lambda **kwargs: tfr.ConvResNet(4, 2, 6, checkerboard_parity=1, **kwargs),
    "resnet_no_block": lambda **kwargs: tfr.ConvResNet(4, 0, 6, **kwargs),
    "shallow": lambda **kwargs: tfr.ShallowConv(4, 6, **kwargs),
    "shallow_board": lambda **kwargs: tfr.ShallowConv(4, 6, checkerboard_parity=0, **kwargs),
}
each_network = pytest.mark.parametrize("name", _MAKERS)


def _network(name, /, **kwargs):
    layer = _MAKERS[name](**kwargs)
    layer.build((None, None, None, 2))
    return ft.randomize(layer)


@each_network
def test_shapes(name):
    layer = _network(name)
    assert layer.compute_output_shape((None, 8, 6, 2)) == (None, 8, 6, 4)
    # A second batch size, and other heights and widths.
    for shape in ((1, 4, 4, 2), (3, 4, 4, 2), (2, 7, 5, 2)):
        assert layer(ft.normal(shape)).shape == (*shape[:-1], 4)


# The last skip connection is part of other convolutions or not, and there are cells of 2x2 or not.
@pytest.mark.parametrize("shape", [(4, 6), (2, 4), (5, 3), (1, 3)])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["resnet", "resnet_board", "resnet_no_block"])
def test_against_layer_by_layer(name, training, shape):
    layer, again = (_network(name, dtype="float64") for _ in range(2))
    again.set_weights(layer.get_weights())
    x = ft.normal([3, *shape, 2], dtype=tf.float64)
    outputs = layer(x, training=training)
    np.testing.assert_allclose(outputs, _layer_by_layer(again, x, training), rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(layer.variables, again.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def _layer_by_layer(network, x, training):
    def relu_of(norm, h):
        return tf.nn.relu(norm(h, training=training))

    mask = tfr.CheckerboardMask(1) if network.checkerboard_parity else None
    normed = network.input_norm(x, training=training)
    if mask is None:
        inputs = tf.concat([normed, -normed], axis=-1)
    else:
        board = tf.broadcast_to(mask.board(x), tf.shape(x[..., :1]))
        inputs = tf.concat([2 * normed, -2 * normed, board], axis=-1)
    h = network.input_conv(tf.nn.relu(inputs))
    skips = network.input_skip(h)
    for norm1, conv1, norm2, conv2, skip in network.blocks:
        h = h + conv2(relu_of(norm2, conv1(relu_of(norm1, h))))
        skips += skip(h)
    outputs = network.output_conv(relu_of(network.output_norm, skips))
    return outputs if mask is None else mask.restrict(outputs)


@pytest.mark.parametrize("name", ["resnet", "resnet_board"])
def test_gradients_against_layer_by_layer(name):
    layer = _network(name, dtype="float64")
    x = ft.normal([3, 4, 6, 2], dtype=tf.float64)
    variables = [variable.value for variable in layer.trainable_variables]

    def gradients(function):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(function(x) ** 3)
        return tape.gradient(loss, variables)

    ours = gradients(lambda x: layer(x, training=True))
    for our, plain in zip(ours, gradients(lambda x: _layer_by_layer(layer, x, True)), strict=True):
        # Batch normalisation leaves nothing but rounding of the gradients of some biases.
        np.testing.assert_allclose(our, plain, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("parity", [0, 1])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["resnet_board", "shallow_board"])
def test_parity_of_a_call(name, training, parity):
    layer = _network(name, dtype="float64")
    config = {**layer.get_config(), "checkerboard_parity": parity}
    expected = type(layer).from_config(config)
    expected.build((None, None, None, 2))
    expected.set_weights(layer.get_weights())
    x = ft.normal([3, 4, 6, 2], dtype=tf.float64)
    options = {"training": training} if "resnet" in name else {}
    expected = expected(x, **options)

    @tf.function(reduce_retracing=True)
    def call(parity):
        return layer(x, checkerboard_parity=parity, **options)

    for given in (parity, tf.constant(parity)):
        np.testing.assert_allclose(call(given), expected, rtol=1e-9, atol=1e-10)


@each_network
def test_unknown_height_and_width(name):
    layer = _network(name)
    late = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 2], tf.float32)])
    for shape in ((2, 4, 4, 2), (1, 6, 3, 2)):
        x = ft.normal(shape)
        np.testing.assert_allclose(late(x), layer(x), rtol=1e-4, atol=1e-5)


@each_network
def test_build_makes_all_variables(name):
    layer = _network(name)
    before = len(layer.variables)
    layer(ft.normal([1, 4, 4, 2]), **({"training": True} if "resnet" in name else {}))
    assert layer.built and len(layer.variables) == before
    # And so does the first call.
    unbuilt = _MAKERS[name]()
    unbuilt(ft.normal([1, 4, 4, 2]))
    assert len(unbuilt.variables) == before


@each_network
def test_config_round_trip(name):
    layer = _network(name, name="network", dtype="float64")
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    again.build((None, None, None, 2))
    again.set_weights(layer.get_weights())
    x = ft.normal([2, 4, 4, 2], tf.float64)
    np.testing.assert_array_equal(again(x), layer(x))


@each_network
def test_serialisation(name):
    layer = _network(name)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is type(layer) and again.get_config() == layer.get_config()
    again.set_weights(layer.get_weights())
    x = ft.normal([2, 4, 4, 2])
    np.testing.assert_array_equal(again(x), layer(x))


@each_network
def test_within_a_saved_keras_model(name, tmp_path):
    layer = _network(name)
    inputs = keras.Input([4, 4, 2])
    model = keras.Model(inputs, layer(inputs))
    path = str(tmp_path / "model.keras")
    model.save(path)
    x = ft.normal([2, 4, 4, 2])
    np.testing.assert_allclose(keras.models.load_model(path)(x), model(x), rtol=1e-6)


@each_network
def test_mixed_precision(name):
    layer, single = _network(name, dtype="mixed_bfloat16"), _network(name)
    assert {str(variable.dtype) for variable in layer.variables} == {"float32"}
    x = ft.normal([2, 4, 4, 2])
    assert layer(x).dtype == tf.bfloat16
    single.set_weights(layer.get_weights())
    expected = single(x)
    error = np.abs(tf.cast(layer(x), tf.float32) - expected)
    assert error.max() < 0.1 * np.abs(expected).max() + 0.05


@each_network
def test_the_global_policy(name):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        layer = _network(name)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert layer(ft.normal([2, 4, 4, 2])).dtype == tf.bfloat16


@each_network
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_all_variables(name, training):
    layer = _network(name)
    options = {"training": training} if "resnet" in name else {}
    x = ft.normal([4, 4, 4, 2])
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(layer(x, **options) ** 2)
    variables = [variable.value for variable in layer.trainable_variables]
    for gradient in tape.gradient(loss, [x, *variables]):
        assert gradient is not None and np.isfinite(gradient).all()
        assert np.abs(gradient).max() > 0


@pytest.mark.parametrize("name", ["resnet", "resnet_board"])
def test_training_moves_statistics(name):
    layer = _network(name)
    x = 2 * ft.normal([8, 4, 4, 2]) + 3
    before = layer.input_norm.moving_mean.numpy()
    evaluation = layer(x)
    np.testing.assert_array_equal(layer.input_norm.moving_mean, before)
    training = layer(x, training=True)
    expected = 0.9 * before + 0.1 * x.numpy().mean((0, 1, 2))
    np.testing.assert_allclose(layer.input_norm.moving_mean, expected, rtol=1e-5)
    assert np.abs(training - evaluation).max() > 1e-2


def test_batch_norm_in_double_is_that_in_single():
    single, double = _network("resnet"), _network("resnet", dtype="float64")
    double.set_weights(single.get_weights())
    x = 2 * ft.normal([8, 4, 4, 2], tf.float64) + 3
    for training in (True, False):
        np.testing.assert_allclose(
            single(tf.cast(x, tf.float32), training=training),
            double(x, training=training),
            rtol=1e-3,
            atol=1e-3,
        )
    # The moving statistics too.
    for one, other in zip(single.variables, double.variables, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_structure():
    layer = _network("resnet_board")
    assert len(layer.blocks) == 2
    # BN and its negative, and the board.
    assert layer.input_conv.kernel.shape == (3, 3, 5, 6)
    assert layer.output_conv.kernel.shape == (1, 1, 6, 4)
    assert [block[1].bias for block in layer.blocks] == [None, None]
    assert _network("resnet").input_conv.kernel.shape == (3, 3, 4, 6)


def test_the_skips_are_summed():
    # With all convolutions of the blocks at zero, each skip still sees the input's features.
    layer = _network("resnet")
    x = ft.normal([2, 4, 4, 2])
    before = layer(x)
    layer.blocks[0][4].bias.assign_add(tf.ones([6]))
    assert np.abs(layer(x) - before).max() > 1e-3


def test_the_board_tells_where_a_zero_is_kept():
    # Without it a kept zero and a hidden pixel would look the same.
    zeros = tf.zeros([1, 4, 4, 2])
    y = _network("resnet_board")(zeros).numpy()[0, 1:3, 1:3]
    assert np.abs(y[0, 0] - y[0, 1]).max() > 1e-3


def test_shallow_starts_at_zero():
    layer = tfr.ShallowConv(4, 6)
    np.testing.assert_array_equal(layer(ft.normal([1, 4, 4, 2])), np.zeros([1, 4, 4, 4]))
