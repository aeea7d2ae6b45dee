import json

import flow_testing as ft
import numpy as np
import pytest
import run_folder
import tensorflow as tf

_CONFIG = {
    "dataset": "digits",
    "seed": 3,
    "steps": 10,
    "bijector": {
        "configuration": "paper",
        "arguments": {
            "image_shape": (8, 8, 1),
            "num_scales": 1,
            "num_blocks": 0,
            "num_filters": 4,
            "num_couplings": 1,
            "num_values": 17,
        },
    },
}


def _with_arguments(**arguments):
    bijector = _CONFIG["bijector"]
    return {
        **_CONFIG,
        "bijector": {**bijector, "arguments": {**bijector["arguments"], **arguments}},
    }


def test_a_run_is_loaded(tmp_path):
    model = run_folder.build_model(_CONFIG)
    ft.randomize(model.distribution)
    run_folder.write_config(tmp_path, _CONFIG)
    model.save_weights(tmp_path / "best.weights.h5")
    loaded, config = run_folder.load_run(tmp_path)
    assert config == json.loads(json.dumps(_CONFIG))
    assert loaded.seed == 3
    assert loaded.distribution.bijector.image_shape == (8, 8, 1)
    images = ft.grey_levels(3, (8, 8, 1)) // 16
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0)
    )


def test_weights_files_by_priority(tmp_path):
    run_folder.write_config(tmp_path, _CONFIG)
    values = {}
    for seed, name in enumerate(["other.weights.h5", "final.weights.h5", "best.weights.h5"]):
        model = run_folder.build_model(_CONFIG)
        ft.randomize(model.distribution, seed)
        model.save_weights(tmp_path / name)
        values[name] = model.distribution.trainable_variables[0].numpy()

        def loaded(weights=None):
            model, _ = run_folder.load_run(tmp_path, weights)
            return model.distribution.trainable_variables[0].numpy()

        if name != "other.weights.h5":
            np.testing.assert_array_equal(loaded(), values[name])
    np.testing.assert_array_equal(loaded(tmp_path / "other.weights.h5"), values["other.weights.h5"])


def test_compact_and_double():
    spec = {
        "configuration": "compact",
        "arguments": {"image_shape": [8, 8, 1], "num_filters": 4, "dtype": "float64"},
    }
    bijector = run_folder.build_bijector(spec)
    assert bijector.dtype == tf.float64
    assert bijector.num_scales == 3
    model = run_folder.build_model({"bijector": spec})
    assert model.distribution.sample(1, seed=(0, 1)).dtype == tf.float64


def test_missing_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results of examples/train_image.py in .*config"):
        run_folder.load_run(tmp_path / "nothing")
    run_folder.write_config(tmp_path, _CONFIG)
    with pytest.raises(FileNotFoundError, match=r"best.weights.h5 or .*final.weights.h5"):
        run_folder.load_run(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"mine.weights.h5"):
        run_folder.load_run(tmp_path, tmp_path / "mine.weights.h5")


@pytest.mark.parametrize(
    ("text", "message"), [("{", "Expected JSON in"), ("{}", "'bijector'"), ("[]", "'bijector'")]
)
def test_a_damaged_configuration(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        run_folder.read_config(tmp_path)


def test_weights_of_another_model(tmp_path):
    run_folder.write_config(tmp_path, _CONFIG)
    other = run_folder.build_model(_with_arguments(num_filters=5))
    other.save_weights(tmp_path / "best.weights.h5")
    with pytest.raises(ValueError, match=r"weights of the model in .*, got .*best.weights.h5"):
        run_folder.load_run(tmp_path)
    (tmp_path / "best.weights.h5").write_bytes(b"not HDF5")
    with pytest.raises(ValueError, match=r"weights of the model in .*, got .*best.weights.h5"):
        run_folder.load_run(tmp_path)


def test_equal_configurations(tmp_path):
    run_folder.check_same_config(tmp_path, _CONFIG)
    run_folder.check_same_config(tmp_path / "nothing", _CONFIG)
    run_folder.write_config(tmp_path, _CONFIG)
    run_folder.check_same_config(tmp_path, _CONFIG)
    run_folder.check_same_config(tmp_path, {**_CONFIG, "steps": 20}, ignore=["steps"])


def test_different_configurations(tmp_path):
    run_folder.write_config(tmp_path, _CONFIG)
    other = {**_with_arguments(num_filters=5), "dataset": "photos", "flip": True}
    with pytest.raises(ValueError, match="another configuration") as caught:
        run_folder.check_same_config(tmp_path, other)
    lines = str(caught.value).splitlines()[1:-1]
    assert lines == [
        "  bijector.arguments.num_filters: 4 in the folder, 5 expected",
        "  dataset: digits in the folder, photos expected",
        "  flip: - in the folder, True expected",
    ]
    assert run_folder.read_config(tmp_path)["dataset"] == "digits"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"arguments": {}}, r"keys \['configuration'\]"),
        ({"configuration": "glow", "arguments": {}}, "got 'glow'"),
        (
            {"configuration": "paper", "arguments": {"image_shape": [4, 4, 1], "x": 1}},
            "arguments of",
        ),
    ],
)
def test_invalid_bijectors(spec, message):
    with pytest.raises(ValueError, match=message):
        run_folder.build_bijector(spec)
