"""`model.save` and `keras.models.load_model`; in another process: `hardening/test_stateful.py`."""

import inspect
from functools import partial

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from keras.src.saving import object_registration

import tfp_realnvp as tfr
from tfp_realnvp.bijectors import ConditionalBijector
from tfp_realnvp.distributions.routing import find_condition_spec, takes_condition
from tfp_realnvp.internal import private_api
from tfp_realnvp.networks import ConditionEmbedding
from tfp_realnvp.saving import keras_config

tfd, tfb = tfp.distributions, tfp.bijectors

pytestmark = [pytest.mark.core, pytest.mark.eager]

SHAPE = (4, 4, 1)
SMALL = {"num_couplings": 1, "num_filters": 4}


def trainable_base():
    scale = tfp.util.TransformedVariable(1.3 * np.ones(SHAPE, np.float32), tfb.Softplus())
    normal = tfd.Normal(tf.Variable(0.1 * np.ones(SHAPE, np.float32), name="loc"), scale)
    return tfd.Independent(normal, 3)


def diagonal_base():
    scale = tfp.util.TransformedVariable(np.linspace(0.5, 2, 16, dtype="f4"), tfb.Softplus())
    normal = tfd.MultivariateNormalDiag(tf.Variable(0.1 * np.ones(16, np.float32)), scale)
    return tfd.TransformedDistribution(normal, tfb.Reshape(SHAPE))


def batch_for(distribution, number, seed=0):
    """Returns images, and their conditions if the distribution takes any."""
    # Gray levels below the smallest num_values here.
    images = ft.grey_levels(number, SHAPE, seed) % 17
    if not takes_condition(distribution):
        return images
    spec = find_condition_spec(distribution)
    event = () if spec is None else spec.event_shape
    kind = {0: "labels", 1: "vectors", 3: "images"}[len(event)]
    return images, ft.condition(kind, [number], seed=seed).numpy()


def trained_model(distribution, **compile_arguments):
    model = tfr.FlowModel(distribution, seed=5, name="flow")
    model.compile(**compile_arguments)
    model.fit(batch_for(distribution, 16), batch_size=8, verbose=0, shuffle=False)
    return model


def assert_same(model, loaded):
    data = batch_for(model.distribution, 8, seed=2)
    expected = model.predict(data, verbose=0)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(loaded.predict(data, verbose=0), expected, rtol=1e-6)
    assert [w.shape for w in loaded.weights] == [w.shape for w in model.weights]


def test_optimizer_and_penalty_round_trip(tmp_path):
    flow = ft.conditional_distribution("labels", condition_dropout=0.3)
    model = trained_model(flow, scale_l2=0.25)
    loaded = ft.reloaded("load_model", model, tmp_path)
    assert type(loaded.optimizer) is tfr.Muon
    assert loaded.optimizer.global_clipnorm == 100.0
    assert int(loaded.optimizer.iterations) == 2
    assert (loaded.name, loaded.seed, loaded.dequantize) == ("flow", 5, True)
    assert loaded.compile_options.scale_l2 == 0.25
    ft.assert_equal(model.optimizer.variables, loaded.optimizer.variables)
    assert_same(model, loaded)
    # Training continues, with the same conditions left out.
    images, labels = batch_for(flow, 8, seed=1)
    options = {"shuffle": False, "verbose": 0}
    losses = [m.fit(images, labels, **options).history["loss"] for m in (model, loaded)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    ft.assert_close(loaded.weights, model.weights, rtol=1e-5, atol=1e-6)


def chain_of_parts():
    """Returns a flow of all kinds of bijectors, with one coupling used twice."""
    coupling = tfr.AffineCoupling(tfr.ChannelMask(1), ft.network(2, 4), scale=0.5)
    inner = tfr.FlowChain([tfr.ActNorm(num_channels=4), coupling, tfr.BatchNormalization(0.8)])
    shift = tfb.Shift(tf.Variable(np.full([1, 1, 4], 0.3, np.float32)))
    parts = [tfb.Invert(tfr.Squeeze()), coupling, inner, shift, tfr.Squeeze()]
    return tfr.FlowChain([tfr.PixelLogit(0.1), tfb.Scale(0.7), *parts])


def transformers_by_hand():
    """Returns a flow of couplings with other transformers, after a mixing of channels."""
    spline, mixture = tfr.RationalQuadraticSpline(3, 6.0), tfr.LogisticMixture(2)
    couplings = [
        tfr.Coupling(tfr.ChannelMask(i % 2), ft.network(2, 2 * part.num_parameters), part)
        for i, part in enumerate((spline, mixture, tfr.Affine(0.5)))
    ]
    first = [tfr.PixelLogit(), tfb.Invert(tfr.Squeeze()), tfr.InvertibleConv1x1(4)]
    return tfr.FlowChain([*first, *couplings, tfr.Squeeze()])


@keras.saving.register_keras_serializable(package="tests")
class Stretch(tfr.Transformer):
    """A transformer of the user, with the constructor of Keras' guides."""

    num_parameters = 1

    def __init__(self, bound=0.5, **kwargs):
        super().__init__(**kwargs)
        self.bound = bound

    def inverse(self, x, parameters):
        log_scale = self.bound * tf.tanh(parameters)
        return x * tf.exp(log_scale), log_scale

    def forward(self, z, parameters):
        log_scale = self.bound * tf.tanh(parameters)
        return z * tf.exp(-log_scale), -log_scale


@keras.saving.register_keras_serializable(package="tests")
class Shifted(Stretch):
    """A transformer of the user, which passes the arguments of its base class on."""

    def __init__(self, shift, **kwargs):
        super().__init__(**kwargs)
        self.shift = shift

    def inverse(self, x, parameters):
        return super().inverse(x - self.shift, parameters)

    def forward(self, z, parameters):
        x, log_det = super().forward(z, parameters)
        return x + self.shift, log_det


@keras.saving.register_keras_serializable(package="tests")
class LaterChannels(tfr.ChannelMask):
    """A mask of the user."""

    def __init__(self, number):
        super().__init__(num_first=number)
        self.number = number

    def get_config(self):
        return {"number": self.number}


@keras.saving.register_keras_serializable(package="tests")
class Rotation(tfr.FlowBijector):
    """A bijector of the user, whose arguments are a variable, a layer and another bijector."""

    def __init__(self, angle, layer, inner, validate_args=False, name="rotation"):
        parameters = dict(locals())
        self.angle, self.inner, self._layers = angle, inner, (layer,)
        self._track_layers(layer)
        self.offset = tf.Variable(0.0)
        super().__init__(parameters=parameters, validate_args=validate_args, name=name)

    @property
    def layers(self):
        return self._layers

    def _rotated(self, x, sign):
        (layer,) = self._layers
        angle = self.angle + self.offset + tf.reduce_sum(layer.trainable_variables[0])
        cos, sin = tf.cos(angle), sign * tf.sin(angle)
        first, second = x[..., :2], x[..., 2:]
        return tf.concat([cos * first - sin * second, sin * first + cos * second], axis=-1)

    def _forward_and_log_det(self, x, p):
        y, log_det = self.inner._forward_and_log_det(x, p)
        return self._rotated(y, 1.0), log_det

    def _inverse_and_log_det(self, y, p):
        return self.inner._inverse_and_log_det(self._rotated(y, -1.0), p)


@keras.saving.register_keras_serializable(package="tests")
class Halves(keras.layers.Layer):
    """A network of the user, whose configuration is made by Keras."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(units)

    def build(self, shape):
        self.dense.build(shape)

    def call(self, inputs):
        return self.dense(inputs)


@keras.saving.register_keras_serializable(package="tests")
class Wide(tfd.Sample):
    """A base distribution of the user."""

    def __init__(self, width, name="wide"):
        parameters = dict(locals())
        super().__init__(tfd.Normal(0.0, width), SHAPE, name=name)
        self._parameters = parameters

    def get_config(self):
        return dict(self.parameters)


def parts_of_the_user():
    layer, network = Halves(2), Halves(2)
    layer.build([None, 2])
    network.build([None, None, None, 2])
    coupling = tfr.Coupling(LaterChannels(2), network, Stretch(0.7))
    rotation = Rotation(tf.Variable(0.3), layer, tfr.ActNorm(num_channels=4))
    return tfr.FlowChain([tfb.Invert(tfr.Squeeze()), coupling, rotation, tfr.Squeeze()])


def embedded_by_hand():
    network = ft.network(1, 2, conditional_event_shape=[6])
    coupling = tfr.AffineCoupling(tfr.CheckerboardMask(0), network)
    embedding = ConditionEmbedding(num_classes=5, size=6)
    return tfr.FlowChain([tfr.PixelLogit(), ConditionalBijector(coupling, embedding)])


def mixture_of_classes():
    components = tfd.Independent(tfd.Normal(tf.Variable(ft.normal([5, *SHAPE])), 1.0), 3)
    return tfr.ClassMixture(tfd.Categorical(logits=ft.normal([5], seed=1)), components)


BIJECTORS = {
    "paper": lambda: tfr.RealNVPImage(SHAPE, 2, num_blocks=1, **SMALL),
    "compact": lambda: tfr.RealNVPImage.compact(SHAPE, num_scales=2, attention=2, **SMALL),
    "additive": lambda: tfr.RealNVPImage(
        SHAPE, num_blocks=0, transformer="additive", normalization=None, num_values=17, **SMALL
    ),
    "registered function": lambda: tfr.RealNVPImage(SHAPE, network_fn=ft.shallow_conv, **SMALL),
    "by hand": chain_of_parts,
    "labels": lambda: ft.conditional_flow("labels", condition_dropout=0.1),
    "vectors": lambda: ft.conditional_flow("vectors", "shallow", normalization="actnorm"),
    "images": lambda: ft.conditional_flow("images", "user", num_scales=2),
    "bfloat16": lambda: ft.image_flow(SHAPE, network_dtype="mixed_bfloat16", **SMALL),
    "labels in a chain": lambda: tfb.Chain([ft.conditional_flow("labels", "user"), tfb.Shift(0.5)]),
    "labels by hand": embedded_by_hand,
    "transformers by hand": transformers_by_hand,
    "of the user": parts_of_the_user,
    "jet": lambda: ft.jet(SHAPE, [tfr.ChannelMask(), tfr.SpatialMask()], num_values=17),
}

BASES = {
    "sample": lambda: tfd.Sample(tfd.Normal(0.0, 1.0), SHAPE),
    "trainable independent": trainable_base,
    "diagonal": diagonal_base,
    "of the user": lambda: Wide(tf.Variable(1.7)),
    "of a class": lambda: ft.class_base(tf.Variable(ft.normal([5, *SHAPE]))),
    "mixture of classes": mixture_of_classes,
}


@pytest.mark.parametrize(
    ("bijector", "base"),
    [
        *((name, "sample") for name in BIJECTORS),
        ("compact", "trainable independent"),
        *ft.full(*(("compact", name) for name in BASES if name != "trainable independent")),
        ("labels by hand", "of a class"),
        ("of the user", "of the user"),
    ],
)
def test_bijectors_and_bases_round_trip(tmp_path, bijector, base):
    flow = tfd.TransformedDistribution(BASES[base](), BIJECTORS[bijector]())
    model = tfr.FlowModel(flow)
    ft.randomize(flow)
    for how in ("load_model",) if base == "sample" else ("load_model", "from_preset"):
        loaded = ft.reloaded(how, model, tmp_path)
        assert_same(model, loaded)
        # An object that is used twice is loaded as one object: no variable is duplicated.
        assert len(loaded.distribution.variables) == len(flow.variables)
        trainable = [len(each.trainable_variables) for each in (loaded.distribution, flow)]
        assert trainable[0] == trainable[1] > 0


def test_keyword_arguments_of_a_base_class():
    coupling = tfr.Coupling(tfr.ChannelMask(0), ft.network(1, 1), Shifted(0.3, bound=0.7, name="a"))
    config = keras_config.serialize(coupling, "bijector")
    loaded = keras_config.deserialize(config, tfr.Coupling).transformer
    assert (loaded.shift, loaded.bound, loaded.name) == (0.3, 0.7, "a")


def in_scope(load, path, objects):
    with keras.saving.custom_object_scope(objects):
        return load(path)


def in_another_scope(load, path, objects):
    (first, value), *others = objects.items()
    with keras.saving.custom_object_scope({first: value}):
        return load(path, custom_objects=dict(others))


WAYS_TO_NAME = {
    "custom_objects": lambda load, path, objects: load(path, custom_objects=objects),
    "scope": in_scope,
    "both": in_another_scope,
}


@pytest.mark.parametrize("how", WAYS_TO_NAME)
@pytest.mark.parametrize("is_registered", [True, False])
def test_parts_of_the_user_that_are_not_registered(tmp_path, monkeypatch, how, is_registered):
    bijector = ft.randomize(parts_of_the_user())
    model = tfr.FlowModel(tfd.TransformedDistribution(BASES["of the user"](), bijector))
    parts = [Stretch, LaterChannels, Rotation, Halves, Wide]
    registered = {keras.saving.get_registered_name(part): part for part in parts}
    names = registered if is_registered else {part.__name__: part for part in parts}

    def forget():
        for name, part in registered.items():
            monkeypatch.delitem(keras.saving.get_custom_objects(), name)
            monkeypatch.delitem(object_registration.GLOBAL_CUSTOM_NAMES, part)

    if not is_registered:
        forget()
    with keras.saving.custom_object_scope(names):
        model.save(tmp_path / "model.keras")
        model.save_to_preset(tmp_path / "preset")
    if is_registered:
        forget()
    for load, path in (
        (keras.models.load_model, tmp_path / "model.keras"),
        (tfr.FlowModel.from_preset, tmp_path / "preset"),
    ):
        with pytest.raises((TypeError, ValueError), match="registered with Keras, got"):
            load(path)
        assert_same(model, WAYS_TO_NAME[how](load, path, names))


def test_a_preset_names_the_part_that_is_not_registered(tmp_path, monkeypatch):
    bijector = ft.randomize(parts_of_the_user())
    model = tfr.FlowModel(tfd.TransformedDistribution(BASES["of the user"](), bijector))
    model.save_to_preset(tmp_path)
    for part, error in (
        (Rotation, "a class that is registered with Keras, got"),
        (Halves, "registered with Keras or given as custom_objects, got .* registered as"),
    ):
        name = keras.saving.get_registered_name(part)
        with monkeypatch.context() as patch:
            patch.delitem(keras.saving.get_custom_objects(), name)
            with pytest.raises(ValueError, match=f"{error} '{name}'"):
                tfr.FlowModel.from_preset(tmp_path)


def objects_of(config):
    """Yields the dictionaries of a configuration."""
    if isinstance(config, dict):
        yield config
        config = config.values()
    for value in config if not isinstance(config, str) and np.iterable(config) else ():
        yield from objects_of(value)


def test_a_configuration_names_every_option():
    # The default of an option may change, a saved model may not.
    bijectors = [BIJECTORS[name]() for name in ("by hand", "labels by hand", "compact", "labels")]
    base = tfd.TransformedDistribution(BASES["of a class"](), transformers_by_hand())
    flow = tfd.TransformedDistribution(base, tfr.FlowChain(bijectors))
    seen = set()
    for config in objects_of(keras_config.serialize(flow, "flow")):
        name = str(config.get("class", config.get("class_name"))).split(".")[-1]
        if isinstance(part := getattr(tfr, name, None), type):
            part = tfr.ImageFlow if issubclass(part, tfr.ImageFlow) else part
            parameters = inspect.signature(part).parameters.values()
            options = {p.name for p in parameters if p.kind is not p.VAR_KEYWORD}
            # Variables that copies share, and the arguments of a subclass.
            options -= {"factors", "learned", "moving", "parameters"}
            assert options <= set(config.get("arguments", config.get("config"))), name
            seen.add(name)
    assert {"RealNVPImage", "Coupling", "ConvResNet"} <= seen


def test_a_flow_and_its_copy_share_their_parts_when_loaded():
    flow = ft.image_flow(SHAPE, alpha=None, **SMALL)
    chain = tfr.FlowChain([flow, flow.copy(name="again")])
    distribution = tfd.TransformedDistribution(BASES["sample"](), chain)
    config = keras_config.serialize(distribution, "distribution")
    first, second = keras_config.deserialize(config, tfd.Distribution).bijector.bijectors
    assert first.bijectors == second.bijectors and len(first.variables) == len(flow.variables)


@keras.saving.register_keras_serializable(package="tests")
class FreshMask(tfr.Coupling):
    """A coupling of the user, whose configuration makes a new mask."""

    def get_config(self):
        return {**super().get_config(), "mask": tfr.ChannelMask(self.mask.parity)}


def test_new_parts_of_a_configuration_are_distinct():
    parities = [0, 1, 0, 1, 0, 1]
    couplings = [
        FreshMask(tfr.ChannelMask(parity), ft.network(2, 2), Stretch()) for parity in parities
    ]
    config = keras_config.serialize(tfr.FlowChain(couplings), "bijector")
    loaded = keras_config.deserialize(config, tfr.FlowChain).bijectors
    assert [coupling.mask.parity for coupling in loaded] == parities


def test_scalars_of_numpy_keep_their_dtype(tmp_path):
    base = tfd.Sample(tfd.Normal(np.float64(0.3), 1.5), [np.int64(3)])
    flow = ft.vector_flow(3, dtype=tf.float64)
    model = tfr.FlowModel(tfd.TransformedDistribution(base, flow))
    loaded = ft.reloaded("load_model", model, tmp_path)
    rows = ft.normal([8, 3], tf.float64)
    expected = model.distribution.log_prob(rows)
    np.testing.assert_allclose(loaded.distribution.log_prob(rows), expected, rtol=1e-12)
    assert type(loaded.distribution.distribution.distribution.parameters["loc"]) is np.float64


def small_flow(kind=None, seed=0):
    options = {"weights_seed": seed, "condition_dropout": 0.1} if kind else {"weights_seed": seed}
    make = partial(ft.conditional_flow, kind) if kind else partial(ft.image_flow, SHAPE, **SMALL)
    return tfd.TransformedDistribution(trainable_base(), make(**options))


@pytest.mark.parametrize("kind", [None, "labels", "vectors"])
def test_checkpoints_of_distributions(tmp_path, kind):
    flow, fresh = small_flow(kind), small_flow(kind, seed=2)
    path = tf.train.Checkpoint(distribution=flow).save(tmp_path / "flow")
    tf.train.Checkpoint(distribution=fresh).restore(path).assert_consumed()
    ft.assert_equal(fresh.variables, flow.variables)


# Every network of this package, with and without attention and conditions.
NETWORKS = {
    "resnet": lambda: tfr.RealNVPImage(SHAPE, 2, num_blocks=1, attention=2, **SMALL),
    "resnet, labels": lambda: ft.conditional_flow("labels"),
    "resnet, images": lambda: ft.conditional_flow("images"),
    "shallow, split priors": BIJECTORS["compact"],
    "shallow, vectors": lambda: ft.conditional_flow("vectors", "shallow"),
    "shallow, images": lambda: ft.conditional_flow("images", "shallow"),
    "transformer": lambda: ft.jet(SHAPE, [tfr.ChannelMask(0), tfr.ChannelMask(1)], num_values=256),
    "dense": lambda: ft.vector_flow(3, conditional_event_shape=[2]),
    "of the user": lambda: ft.conditional_flow("images", "user"),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_and_its_layers_stay_frozen(tmp_path, kind):
    shape, noise = SHAPE, tfr.VariationalDequantization(SHAPE, num_couplings=2, num_filters=2)
    if kind == "dense":
        shape, noise = [3], None
    flow = tfd.TransformedDistribution(ft.standard_normal(shape), NETWORKS[kind]())
    model = tfr.FlowModel(flow, dequantizer=noise)
    for i, network in enumerate(model.networks):
        # A whole network, or its last layer.
        part = network if i % 2 else private_api.flatten_layers(network)[-1]
        part.trainable = False
    # Freeze some scales, `ActNorm` layers and 1×1 convolutions, too.
    others = [layer for layer in model.layers_of_bijectors if layer not in model.networks]
    for layer in others[::2]:
        layer.trainable = False
    flags = [variable.trainable for variable in model.variables]
    assert 0 < len(model.trainable_variables) < len(flags)
    for how in ("load_model", "from_preset"):
        other = ft.reloaded(how, model, tmp_path)
        assert [variable.trainable for variable in other.variables] == flags
        assert len(other.trainable_variables) == len(model.trainable_variables)
        for tf_flags in zip(other.distribution.variables, flow.variables, strict=True):
            assert tf_flags[0].trainable == tf_flags[1].trainable


@pytest.mark.parametrize("optimizer", [tfr.FusedAdam, tfr.Muon, keras.optimizers.Adam])
def test_layers_frozen_after_the_last_fit(tmp_path, optimizer):
    model = trained_model(small_flow(), optimizer=optimizer(1e-3))
    model.networks[0].trainable = False
    with pytest.warns(UserWarning, match="Skipping variable loading for optimizer"):
        loaded = ft.reloaded("load_model", model, tmp_path)
    assert_same(model, loaded)
    assert loaded.optimizer.iterations == 0
    assert len(loaded.trainable_variables) == len(model.trainable_variables)
    frozen = [v for v in loaded.networks[0].variables if "moving" not in v.name]
    before = ft.values(frozen)
    loaded.fit(batch_for(loaded.distribution, 8), verbose=0)
    ft.assert_equal(frozen, before)


def test_changed_attributes_of_the_default_optimizer(tmp_path):
    model = trained_model(ft.conditional_distribution("labels", condition_dropout=0.3))
    model.optimizer.global_clipnorm, model.optimizer.beta_1 = 1.0, 0.5
    loaded = ft.reloaded("load_model", model, tmp_path)
    assert (loaded.optimizer.global_clipnorm, loaded.optimizer.beta_1) == (1.0, 0.5)
    assert loaded.compile_options == model.compile_options and loaded.compile_options.anneal
