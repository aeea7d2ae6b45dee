"""Networks as in Keras' guides: nested layers in `__init__`, and no `build`."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

tfd, tfb = tfp.distributions, tfp.bijectors

pytestmark = [pytest.mark.core, pytest.mark.eager]

SHAPE = (4, 4, 1)


@keras.saving.register_keras_serializable(package="tests")
class Block(keras.layers.Layer):
    """A residual block of the user, whose initial weights are not zero."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.layers = [
            keras.layers.Dense(units, kernel_initializer="random_normal", dtype=self.dtype_policy)
            for _ in range(2)
        ]

    def call(self, inputs):
        first, second = self.layers
        return inputs + second(tf.nn.tanh(first(inputs)))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="tests")
class Network(keras.layers.Layer):
    """A network of the user that can take a condition, a vector or an image."""

    def __init__(self, channels, is_pair=False, conditional_event_shape=None, **kwargs):
        super().__init__(**kwargs)
        self.channels, self.is_pair = channels, is_pair
        self.conditional_event_shape = conditional_event_shape
        self.first = keras.layers.Dense(6, dtype=self.dtype_policy)
        self.block = Block(6, dtype=self.dtype_policy)
        if conditional_event_shape is not None:
            self.of_condition = keras.layers.Dense(6, dtype=self.dtype_policy)
        self.dropout = keras.layers.Dropout(0.1)
        self.last = keras.layers.Dense(channels, dtype=self.dtype_policy)

    def call(self, inputs, training=False, conditional_input=None):
        h = self.first(inputs)
        if conditional_input is not None:
            added = self.of_condition(conditional_input)
            h += added if h.shape.rank == added.shape.rank else added[:, None, None]
        outputs = self.last(tf.nn.tanh(self.block(self.dropout(h, training=training))))
        return tf.split(outputs, 2, axis=-1) if self.is_pair else outputs

    def get_config(self):
        names = ("channels", "is_pair", "conditional_event_shape")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def new_network(*, output_channels, dtype, conditional_event_shape=None, **_):
    return Network(output_channels, conditional_event_shape=conditional_event_shape, dtype=dtype)


def image_by_hand():
    masks = [tfr.ChannelMask(0), tfr.CheckerboardMask(1)]
    sizes = [4, 8]
    couplings = [
        tfr.Coupling(mask, Network(size), tfr.Affine())
        for mask, size in zip(masks, sizes, strict=True)
    ]
    return tfr.FlowChain([tfr.PixelLogit(), tfb.Invert(tfr.Squeeze()), *couplings, tfr.Squeeze()])


def vector_by_hand():
    network = Network(4, is_pair=True)
    pair = tfr.real_nvp_coupling(num_masked=1, shift_and_log_scale_fn=network)
    mask = tfr.ChannelMask(1, num_first=1)
    return tfr.FlowChain([pair, tfr.AffineCoupling(mask, Network(2), event_ndims=1)])


def image_of_labels():
    options = {"num_couplings": 1, "num_filters": 4, "num_classes": 5, "embedding_size": 3}
    return tfr.RealNVPImage(SHAPE, 1, network_fn=new_network, **options)


# The shape of an event, the flow, and the conditions of eight events.
FLOWS = {
    "image": (SHAPE, image_of_labels, np.arange(8) % 5),
    "image by hand": (SHAPE, image_by_hand, None),
    "vector": ([3], lambda: tfr.RealNVPVector(3, 2, network_fn=new_network), None),
    "vector by hand": ([3], vector_by_hand, None),
}


@pytest.mark.filterwarnings("error:.*build:UserWarning")
@pytest.mark.parametrize("optimizer", [None, keras.optimizers.Adam])
@pytest.mark.parametrize("kind", FLOWS)
def test_trained_networks_are_loaded(tmp_path, kind, optimizer):
    shape, new_flow, labels = FLOWS[kind]

    def new_model():
        flow = tfd.TransformedDistribution(ft.standard_normal(shape), new_flow())
        return ft.compiled(flow, None if optimizer is None else optimizer(1e-3))

    def log_prob(model):
        options = {} if labels is None else {"bijector_kwargs": {"conditional_input": labels}}
        return model.distribution.log_prob(events + np.float32(0.5), **options)

    model = new_model()
    events = ft.grey_levels(8, shape) if shape == SHAPE else ft.normal([8, 3]).numpy()
    model.fit(events, labels, batch_size=8, verbose=0)
    ft.randomize(model.distribution, seed=3)
    for how in ("load_model", "load_weights", "from_preset", "restore"):
        other = ft.reloaded(how, model, tmp_path / how, new_model)
        ft.assert_equal(other.weights, model.weights)
        np.testing.assert_allclose(log_prob(other), log_prob(model), rtol=1e-6, err_msg=how)
        if how in ("load_model", "restore"):
            ft.assert_equal(other.optimizer.variables, model.optimizer.variables)


@pytest.mark.parametrize("how", ["load_model", "from_preset"])
def test_networks_of_learned_noise_are_loaded(tmp_path, how):
    layer = tfr.coupling_layer(new_network, 4)
    noise = tfr.multi_scale(SHAPE, 1, layer, num_couplings=1, conditional_event_shape=SHAPE)
    noise = tfr.VariationalDequantization(SHAPE, bijector=noise)
    model = tfr.FlowModel(ft.flow_distribution(SHAPE), dequantizer=noise)
    ft.randomize(noise)
    loaded = ft.reloaded(how, model, tmp_path, None)
    images = ft.grey_levels(8, SHAPE)
    expected = noise.dequantize(images, seed=(0, 1))
    ft.assert_close(loaded.dequantizer.dequantize(images, seed=(0, 1)), expected, rtol=1e-6)


@pytest.mark.parametrize("how", ["load_model", "load_weights", "from_preset"])
def test_a_layer_that_is_not_loaded(tmp_path, how):
    def new_model(*others):
        network = Network(4)
        # The configuration of the network lacks this layer.
        network.others = [keras.layers.Dense(2) for _ in others]
        for layer in network.others:
            layer.build((None, 5))
        coupling = tfr.AffineCoupling(tfr.ChannelMask(0, num_first=1), network, event_ndims=1)
        return tfr.FlowModel(tfd.TransformedDistribution(ft.standard_normal([3]), coupling))

    with pytest.raises(ValueError, match=r"\(5, 2\) instead of no such array for .*/others/"):
        ft.reloaded(how, new_model("one"), tmp_path, new_model)


@keras.saving.register_keras_serializable(package="tests")
class LogDensity(keras.layers.Layer):
    """A layer of the user that holds a model."""

    def __init__(self, model, **kwargs):
        super().__init__(**kwargs)
        self.model = model

    def call(self, x):
        return self.model(x)[:, None]

    def get_config(self):
        return {**super().get_config(), "model": keras.saving.serialize_keras_object(self.model)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "model": keras.saving.deserialize_keras_object(config["model"])})


@pytest.mark.parametrize("how", ["load_model", "load_weights"])
def test_a_layer_that_holds_a_model(tmp_path, how):
    def new():
        flows = [tfr.RealNVPVector(3, 2, network_fn=new_network) for _ in range(2)]
        inputs = keras.Input([3])
        outputs = [
            LogDensity(tfr.FlowModel(tfd.TransformedDistribution(ft.standard_normal([3]), flow)))(
                inputs
            )
            for flow in flows
        ]
        return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Concatenate()(outputs)))

    model, x = new(), ft.normal([5, 3])
    ft.randomize(model)
    loaded = ft.reloaded(how, model, tmp_path, new)
    assert len(loaded.trainable_variables) == len(model.trainable_variables) > 50
    ft.assert_close(loaded(x), model(x), rtol=1e-6)
