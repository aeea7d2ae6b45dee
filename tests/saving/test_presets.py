"""Presets: round trips, handles, and folders that are refused without running anything."""

import contextlib
import functools
import json
import operator
import os
import pathlib
import re
import shutil
import sys
import types

import flow_testing as ft
import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from keras.src.backend.common import global_state

import tfp_realnvp as tfr
from tfp_realnvp.internal import atomic_files
from tfp_realnvp.saving import weights_file

tfb, tfd = tfp.bijectors, tfp.distributions

pytestmark = [pytest.mark.quick, pytest.mark.core, pytest.mark.eager]

_PENDING = ".tfp_realnvp.pending"
_FILES = {"config.json", "model.weights.h5", "metadata.json", "README.md"}


def _coupling_of(network):
    """Returns a flow of 4×4 images by one coupling with this network."""
    flow = tfr.FlowChain([tfr.AffineCoupling(tfr.CheckerboardMask(), network)])
    return tfd.TransformedDistribution(ft.standard_normal((4, 4, 1)), flow)


def _sequential(*layers):
    network = keras.Sequential(layers)
    network.build((None, 4, 4, 1))
    return ft.randomize(network)


def _image_model():
    options = {"num_couplings": 1, "invertible_conv": True, "split_prior": True, "attention": 2}
    flow = ft.flow_distribution((4, 4, 1), **options)
    noise = tfr.VariationalDequantization((4, 4, 1), num_couplings=1, num_filters=4)
    model = tfr.FlowModel(flow, dequantizer=ft.randomize(noise), seed=3)
    return model, ft.grey_levels(6, (4, 4, 1))


def _conditional_model():
    model = tfr.FlowModel(ft.conditional_distribution("labels", condition_dropout=0.3))
    return model, (ft.grey_levels(6, (4, 4, 1)), np.arange(6) % 5)


def _vector_model():
    scale = tfp.util.TransformedVariable(np.float32(1.3), tfb.Softplus())
    base = tfd.Sample(tfd.Normal(tf.Variable(0.2), scale), [3])
    flow = ft.randomize(tfr.RealNVPVector(3, 2, num_filters=4))
    return tfr.FlowModel(tfd.TransformedDistribution(base, flow)), ft.normal([6, 3]).numpy()


def _keras_model():
    network = _sequential(
        keras.layers.Conv2D(4, 3, padding="same", activation="swish"),
        keras.layers.Conv2D(2, 1, kernel_initializer="he_normal", kernel_regularizer="l2"),
    )
    return tfr.FlowModel(_coupling_of(network)), ft.grey_levels(6, (4, 4, 1))


@pytest.mark.parametrize("make", [_image_model, _conditional_model, _vector_model, _keras_model])
def test_round_trip(make, tmp_path):
    model, data = make()
    model.compile()
    model.build_optimizer()
    (tmp_path / "log.csv").write_text("kept")
    for _ in range(2):
        model.save_to_preset(tmp_path)
    loaded = tfr.FlowModel.from_preset(tmp_path)
    expected = model.predict(data, verbose=0)
    assert expected.dtype == np.float32 and np.isfinite(expected).all()
    np.testing.assert_array_equal(loaded.predict(data, verbose=0), expected)
    assert loaded.seed == model.seed and not loaded.compiled
    assert {path.name for path in tmp_path.iterdir()} == _FILES | {"log.csv"}
    # A file that `model.save_weights` writes during training, with the optimizer.
    model.save_weights(tmp_path / "model.weights.h5")
    ft.assert_equal(tfr.FlowModel.from_preset(str(tmp_path)).get_weights(), model.get_weights())


def test_another_precision(tmp_path):
    options = {"num_scales": 1, "num_couplings": 1, "num_blocks": 1, "num_filters": 16}
    half = ft.flow_distribution((8, 8, 1), network_dtype="mixed_bfloat16", **options)
    tfr.FlowModel(half).save_to_preset(tmp_path)
    single = tfr.RealNVPImage((8, 8, 1), network_dtype="float32", **options)
    ft.assign(single.variables, half.bijector.variables)
    events = ft.pixels([4, 8, 8, 1])
    policies = (None, half.bijector), ("float32", single), (keras.DTypePolicy("float32"), single)
    for policy, flow in policies:
        loaded = tfr.FlowModel.from_preset(tmp_path, network_dtype=policy).distribution.bijector
        np.testing.assert_array_equal(loaded.inverse(events), flow.inverse(events))
    difference = half.bijector.inverse(events) - single.inverse(events)
    assert 1e-3 < np.abs(difference).max() < 1


def test_metadata_and_card(tmp_path):
    model, _ = _vector_model()
    card = {"data": {"name": "moons", "seed": 1}, "bits": np.float32(1.5)}
    card |= {"by_class": np.arange(2), "limits": "two|lines\nhere"}
    model.save_to_preset(tmp_path / "moons", card=card)
    metadata = json.loads((tmp_path / "moons" / "metadata.json").read_text())
    assert metadata["card"] == {**card, "by_class": [0, 1]}
    assert metadata["parameter_count"] == model.count_params()
    assert metadata["keras_version"] == keras.__version__
    assert metadata["tensorflow_version"] == tf.__version__
    lines = (tmp_path / "moons" / "README.md").read_text().splitlines()
    assert lines[:2] == ["---", "library_name: tfp_realnvp"]
    rows = {"| data | name: moons, seed: 1 |", "| bits | 1.5 |", "| limits | two\\|lines here |"}
    assert rows | {"# moons"} <= set(lines)


@pytest.mark.parametrize("value", [float("nan"), [np.float32("inf")], {1, 2}])
def test_a_card_that_is_not_json_changes_nothing(value, tmp_path):
    model, _ = _vector_model()
    with pytest.raises(ValueError, match=r"save_to_preset: expected a JSON card.* got .*'bits'"):
        model.save_to_preset(tmp_path / "moons", card={"bits": value})
    assert not (tmp_path / "moons").exists()


def test_a_layer_that_could_not_be_loaded_is_not_saved(tmp_path):
    conv = keras.layers.Conv2D(2, 3, padding="same")
    model = tfr.FlowModel(_coupling_of(_sequential(conv, keras.layers.GaussianNoise(0.1))))
    with pytest.raises(TypeError, match=r"the preset could not be loaded.* got 'GaussianNoise'"):
        model.save_to_preset(tmp_path / "preset")
    assert not (tmp_path / "preset").exists()


def test_the_weights_of_a_run_in_progress_stay(tmp_path):
    model, _ = _vector_model()
    model.save_to_preset(tmp_path, weights=False)
    with pytest.raises(ValueError, match=r"got no file model\.weights\.h5"):
        tfr.FlowModel.from_preset(tmp_path)
    model.save_weights(tmp_path / "model.weights.h5")
    before = (tmp_path / "model.weights.h5").read_bytes()
    model.save_to_preset(tmp_path, weights=False)
    assert (tmp_path / "model.weights.h5").read_bytes() == before
    tfr.FlowModel.from_preset(tmp_path)


class _KilledError(BaseException):
    """The end of the process, in these tests."""


class _Kill:
    """Ends all work in a folder after a number of accesses to it, and cleans up nothing."""

    folder, accesses_left = None, 0

    def __call__(self, event, arguments):
        # At the end of the process, modules are gone before the hook is.
        if self.folder is None:
            return
        path = next((part for part in arguments if isinstance(part, (str, os.PathLike))), None)
        if path is None or self.folder not in os.fspath(path):
            return
        self.accesses_left -= 1
        if self.accesses_left < 0:
            raise _KilledError

    @contextlib.contextmanager
    def after(self, accesses, folder):
        self.accesses_left, self.folder = accesses, str(folder)
        try:
            with contextlib.suppress(_KilledError):
                yield
        finally:
            self.folder = None


@pytest.fixture(scope="module")
def kill():
    hook = _Kill()
    sys.addaudithook(hook)
    return hook


@pytest.mark.full
def test_a_save_that_is_killed_leaves_a_whole_preset(tmp_path, kill, monkeypatch):
    data, models = ft.normal([6, 3]).numpy(), []
    for seed, activation in enumerate(["tanh", "relu"]):
        # Arrays of the same shapes, which either configuration takes.
        flow = tfr.RealNVPVector(3, 2, num_filters=4, activation=activation)
        flow = tfd.TransformedDistribution(ft.standard_normal([3]), ft.randomize(flow, seed=seed))
        models.append(tfr.FlowModel(flow))
    old, new = models
    expected = {"old": tfr.log_prob(old, data), "new": tfr.log_prob(new, data)}
    old.save_to_preset(tmp_path / "old", card={"is": "old"})
    (tmp_path / "old" / "log.csv").write_text("kept")
    weights = weights_file.weights_of(new)
    monkeypatch.setattr(weights_file, "weights_of", lambda model: weights)
    layouts, accesses, found = set(), 0, []
    while not found or kill.accesses_left < 0:
        folder = tmp_path / "preset"
        shutil.copytree(tmp_path / "old", folder)
        with kill.after(accesses, folder):
            new.save_to_preset(folder, card={"is": "new"})
        accesses += 1
        card = json.loads(atomic_files.current_path(folder, "metadata.json").read_text())
        found.append(card["card"]["is"])
        pending = [path.name for path in (folder / _PENDING).glob("*")]
        layout = (found[-1], *sorted(pending))
        if layout not in layouts:
            layouts.add(layout)
            loaded = tfr.FlowModel.from_preset(folder)
            np.testing.assert_array_equal(tfr.log_prob(loaded, data), expected[found[-1]])
            # The next one succeeds.
            new.save_to_preset(folder, card={"is": "new"})
            assert "new" in (folder / "README.md").read_text()
            assert _FILES | {"log.csv"} <= {path.name for path in folder.iterdir()}
            assert not (folder / _PENDING).exists()
        shutil.rmtree(folder)
    assert found == sorted(found, reverse=True) and set(found) == {"old", "new"}
    # Between the old files and the new ones: all four in the pending folder, three, two, one.
    assert len(layouts) >= 6, layouts


def test_weights_that_are_saved_after_a_kill_are_not_replaced(tmp_path, kill):
    model, data = _vector_model()
    model.save_to_preset(tmp_path)
    accesses = 0
    while not (tmp_path / _PENDING).exists():
        with kill.after(accesses, tmp_path):
            model.save_to_preset(tmp_path)
        accesses += 1
    ft.randomize(model.distribution, seed=1)
    tfr.save_weights(model, tmp_path / "model.weights.h5")
    loaded = tfr.FlowModel.from_preset(tmp_path)
    np.testing.assert_array_equal(tfr.log_prob(loaded, data), tfr.log_prob(model, data))


class _Named(tfr.FlowModel):
    """A subclass of a user, which is not registered with Keras."""


@keras.saving.register_keras_serializable("tests.presets")
class _Registered(tfr.FlowModel):
    """A subclass of a user."""


def test_subclasses(tmp_path):
    model, data = _vector_model()
    model.save_to_preset(tmp_path / "base")
    _Named(model.distribution).save_to_preset(tmp_path / "named")
    _Registered(model.distribution).save_to_preset(tmp_path / "registered")
    for cls, folder, expected in (
        (_Named, "base", _Named),
        (_Named, "named", _Named),
        (_Registered, "registered", _Registered),
        (tfr.FlowModel, "registered", _Registered),
    ):
        loaded = cls.from_preset(tmp_path / folder)
        assert type(loaded) is expected
        np.testing.assert_array_equal(tfr.log_prob(loaded, data), tfr.log_prob(model, data))
    match = r"of a _Named, or of one of its base classes, .* got 'tests\.presets>_Registered'"
    with pytest.raises(ValueError, match=match):
        _Named.from_preset(tmp_path / "registered")


# Handles.


def test_an_unknown_name():
    names = r"\['digits', 'digits_label', 'photos'\]"
    with pytest.raises(ValueError, match=rf"one of the names {names}, a folder.*got 'sunset'"):
        tfr.FlowModel.from_preset("sunset")


@pytest.mark.parametrize(
    ("folder", "advice"),
    [("digits", "./digits"), ("hf://user/flow", "./flow"), ("kaggle://user/flow/keras/1", "./1")],
)
def test_a_model_is_not_saved_under_the_handle_of_another(folder, advice, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, _ = _vector_model()
    message = f"expected a folder, such as '{advice}', .* got '{folder}'"
    with pytest.raises(ValueError, match=message):
        model.save_to_preset(folder)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["./digits", "results/digits", "absolute", "path"])
def test_a_folder_with_the_name_of_a_bundled_preset(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = {"absolute": str(tmp_path / "digits"), "path": pathlib.Path("digits")}.get(kind, kind)
    model, data = _vector_model()
    model.save_to_preset(folder)
    card = pathlib.Path(folder, "README.md").read_text()
    loaded = [tfr.FlowModel.from_preset(folder)]
    # The call in the card, in the folder that contains the preset.
    (call,) = re.findall(r'tfr\.FlowModel\.from_preset\(".*?"\)', card)
    monkeypatch.chdir(pathlib.Path(folder).absolute().parent)
    loaded.append(eval(call))
    expected = model.predict(data, verbose=0)
    for other in loaded:
        np.testing.assert_array_equal(other.predict(data, verbose=0), expected)


def test_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    model, _ = _vector_model()
    model.save_to_preset("~/moons")
    assert (tmp_path / "moons" / "config.json").exists()
    loaded = tfr.FlowModel.from_preset("~/moons")
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])


@pytest.mark.parametrize(
    ("handle", "library"),
    [("hf://user/flow", "huggingface_hub"), ("kaggle://user/flow/keras/small", "kagglehub")],
)
def test_handles_of_hubs(handle, library, tmp_path, monkeypatch):
    # As the hubs' caches are: that of Hugging Face has links to files elsewhere in it.
    model, data = _vector_model()
    snapshot = tmp_path / "models--user--flow" / "snapshots" / "1"
    model.save_to_preset(snapshot)
    if library == "huggingface_hub":
        blobs = snapshot.parents[1] / "blobs"
        blobs.mkdir()
        for path in list(snapshot.iterdir()):
            shutil.move(path, blobs / path.name)
            path.symlink_to(f"../../blobs/{path.name}")

    def fetch(repository, **_):
        assert handle.endswith(f"://{repository}")
        return str(snapshot)

    hub = types.SimpleNamespace(snapshot_download=fetch, model_download=fetch)
    monkeypatch.setitem(sys.modules, library, hub)
    loaded = tfr.FlowModel.from_preset(handle)
    np.testing.assert_array_equal(loaded.predict(data, verbose=0), model.predict(data, verbose=0))
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f"`pip install {library}`"):
        tfr.FlowModel.from_preset(handle)


# Crafted folders.


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the folder of a valid preset."""
    folder = tmp_path_factory.mktemp("presets") / "whole"
    network = _sequential(keras.layers.Conv2D(2, 3, padding="same"))
    tfr.FlowModel(_coupling_of(network)).save_to_preset(folder)
    return folder


@pytest.fixture
def refuse(whole, tmp_path):
    """Returns a function that crafts a folder from the valid one, and asserts its refusal.

    Nothing may write the file that all payloads write.
    """
    canary = tmp_path / "canary"

    def run(craft, message):
        folder = tmp_path / "crafted"
        shutil.copytree(whole, folder)
        craft(folder)
        with pytest.raises(ValueError, match=rf"^(from_preset: )?expected .*{message}"):
            tfr.FlowModel.from_preset(folder)
        assert not canary.exists()
        shutil.rmtree(folder)

    run.canary = canary
    return run


_FLOW = "config/distribution/arguments"


def _set(path, value):
    """Returns a function that sets a value in the configuration of a folder, at a path of keys."""
    *keys, last = (int(key) if key.isdigit() else key for key in path.split("/"))

    def craft(folder):
        content = json.loads((folder / "config.json").read_text())
        functools.reduce(operator.getitem, keys, content)[last] = value
        (folder / "config.json").write_text(json.dumps(content))

    return craft


def _with_network(config):
    """Returns a function that puts the configuration of an object in the place of a network."""
    network = "bijector/arguments/bijectors/0/arguments/network/config/config/layers/0"
    return _set(f"{_FLOW}/{network}", config)


def _with_array(make):
    """Returns a function that replaces an array of the weights: `make(file, name, values)`."""

    def craft(folder):
        with h5py.File(folder / "model.weights.h5", "r+") as file:
            arrays = {}
            file.visititems(
                lambda name, item: arrays.update({name: item.size} if hasattr(item, "size") else {})
            )
            largest = max(arrays, key=arrays.get)
            make(file, largest, file.pop(largest)[...])

    return craft


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
def test_lambda(refuse):
    canary = str(refuse.canary)
    layer = keras.layers.Lambda(lambda x: open(canary, "w") and x)
    config = keras.saving.serialize_keras_object(layer)
    refuse(_with_network(config), "got 'Lambda' of the module 'keras.layers'")
    refuse(_with_network(config["config"]["function"]), "got '__lambda__'")
    # Behind the name of an allowed class.
    disguise = {"registered_name": "tfp_realnvp>ConvResNet"}
    refuse(_with_network({**config, **disguise}), "got 'Lambda' of the module")
    refuse(_with_network({**config["config"]["function"], **disguise}), "got '__lambda__'")
    legacy = {"class_name": "ConvResNet", "config": config["config"], **disguise}
    refuse(_with_network(legacy), "got 'ConvResNet' of the module None")
    # The user's setting makes no difference.
    try:
        keras.config.enable_unsafe_deserialization()
        refuse(_with_network(config), "got 'Lambda' of the module 'keras.layers'")
    finally:
        global_state.set_global_attribute("safe_mode_saving", None)


def test_foreign_modules(refuse):
    for module, class_name, config in (
        ("os", "function", "system"),
        ("subprocess", "Popen", {"args": ["touch", str(refuse.canary)]}),
        # A function and a layer of Keras that download or read files.
        ("keras.utils", "function", "get_file"),
        ("keras.layers", "StringLookup", {"vocabulary": "/etc/passwd"}),
    ):
        evil = {"module": module, "class_name": class_name, "config": config}
        message = "layers, initializers.* of Keras in config.json.*, got"
        refuse(_with_network({**evil, "registered_name": None}), message)


_NORMAL = f"{_FLOW}/distribution/arguments/distribution/arguments"
_CLASSES = ("tfp.bijectors.tf", "os.system", "tfp_realnvp.FlowModel", None)
_NO_CLASS = "a public distribution or bijector .*, got {!r}"
_MODELS = ("tfp_realnvp>Flow", "tfp_realnvp>ConvResNet", None)
_NO_MODEL = "the configuration of a FlowModel, .* got {!r}"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        *((f"{_FLOW}/bijector/class", name, _NO_CLASS) for name in _CLASSES),
        *(("registered_name", name, _NO_MODEL) for name in _MODELS),
        (f"{_FLOW}/bijector", {"kind": "reference", "to": [1]}, "from which a model can be const"),
        ("config", None, "the configuration of a FlowModel"),
        (f"{_NORMAL}/scale", -1.0, "of the distribution Normal, .*`scale` must be positive"),
        (f"{_NORMAL}/loc", float("inf"), "JSON .* the number Infinity, which is not finite"),
        (f"{_NORMAL}/loc", 10**400, "a config.json from which a model can be constructed"),
    ],
)
def test_configurations(refuse, path, value, message):
    refuse(_set(path, value), message.format(value))


def test_a_configuration_without_a_model(refuse):
    config = '{"registered_name": "tfp_realnvp>FlowModel"}'
    refuse(lambda folder: (folder / "config.json").write_text(config), "of a FlowModel")


@pytest.mark.parametrize("version", [3, "1", 0])
def test_format_versions(refuse, version):
    refuse(_set("config/format_version", version), f"format_version of at most 2, got {version!r}")


def test_arrays(refuse, whole):
    elsewhere, zeros = whole / "model.weights.h5", np.zeros([1], np.float32)
    external = {"external": [(elsewhere, 0, h5py.h5f.UNLIMITED)]}

    def virtual(file, name, values):
        layout = h5py.VirtualLayout(values.shape, "f4")
        layout[...] = h5py.VirtualSource(elsewhere, name, values.shape)
        file.create_virtual_dataset(name, layout)

    def not_finite(file, name, values):
        values.flat[1] = np.nan
        file[name] = values

    wrong = "weights in .* for the model in .*got ValueError: "
    link = "plain HDF5 arrays .* a reference to another file"
    for make, message in (
        (lambda file, name, _: file.update({name: zeros}), rf"{wrong}float32\(1,\)"),
        (lambda file, name, x: file.update({name: x.astype("f8")}), rf"{wrong}float64\("),
        (lambda *_: None, f"{wrong}no such array"),
        (lambda file, name, x: file.update({name: x, "other": zeros}), rf"{wrong}float32\(1,\)"),
        (
            lambda file, name, _: file.update({name: h5py.ExternalLink(elsewhere, name)}),
            f"{wrong}no such array instead of float32",
        ),
        (lambda file, name, x: file.create_dataset(name, x.shape, "f4", **external), link),
        (virtual, link),
        (not_finite, "finite weights .*got ValueError: 1 of .*kernel are not"),
    ):
        refuse(_with_array(make), message)


def test_sizes_that_are_not_plausible(refuse):
    # Terabytes of zeros in a small file.
    def compressed(file, name, _):
        file.create_dataset(name, (2**20, 2**20), "f4", chunks=(1024, 1024), compression="gzip")

    refuse(_with_array(compressed), r"plain HDF5 arrays in .* arrays of 4,.* in a file of .*")

    def large(units):
        config = {"filters": units, "kernel_size": [3, 3], "padding": "same"}
        layer = {"module": "keras.layers", "class_name": "Conv2D", "registered_name": None}
        return _with_network({**layer, "config": config})

    for filters in (10**12, 200):
        refuse(large(filters), "got ValueError: a model with more than the .* weights")

    def long(folder):
        with (folder / "config.json").open("r+b") as file:
            file.truncate(2**40)

    refuse(long, "at most .* bytes in .* 1,099,511,627,776")


def test_a_variable_of_a_base_that_is_out_of_range(tmp_path):
    base = tfd.Sample(tfd.Normal(0.0, tf.Variable(-1.0)), [3])
    flow = tfd.TransformedDistribution(base, tfr.InvertibleConv1x1(3, event_ndims=1))
    tfr.FlowModel(flow).save_to_preset(tmp_path)
    with pytest.raises(ValueError, match="valid parameters of the distribution Normal, got"):
        tfr.FlowModel.from_preset(tmp_path)
    with pytest.raises(ValueError, match="whose networks are Keras layers"):
        tfr.FlowModel.from_preset(tmp_path, network_dtype="float32")


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_missing_files(refuse, name):
    refuse(lambda folder: (folder / name).unlink(), f"got no file {name}")


@pytest.mark.parametrize("text", ["{", "[]", "null", "[" * 100_000, "\xff", ""])
def test_broken_files(refuse, text):
    def craft(folder, name):
        (folder / name).write_text(text, "latin-1")

    message = "a JSON object .*, got (?!StopIteration)"
    refuse(functools.partial(craft, name="config.json"), message)
    refuse(functools.partial(craft, name="model.weights.h5"), "plain HDF5 arrays")
