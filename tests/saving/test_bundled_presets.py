"""The presets that come with the package load, sample, and reach the figures of their cards."""

import json
import math
import pathlib
import re

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr

pytestmark = [pytest.mark.core, pytest.mark.eager]

_FOLDER = pathlib.Path(tfr.__file__).parent / "presets"
_NAMES = ("digits", "digits_label", "photos")


def test_each_card_loads_the_preset_that_it_describes():
    assert sorted(path.name for path in _FOLDER.iterdir()) == sorted(_NAMES)
    for name in _NAMES:
        card = (_FOLDER / name / "README.md").read_text()
        # `make presets` copies the card of a folder.
        assert re.search(rf'from_preset\("(\./)?{name}"\)', card) and f"\n# {name}\n" in card


@pytest.mark.parametrize("name", ["digits_label", *ft.full("digits", "photos")])
def test_bits_per_dim_of_the_card(name):
    model = tfr.FlowModel.from_preset(name)
    card = json.loads((_FOLDER / name / "metadata.json").read_text())["card"]
    data = tfr.data.load_arrays(card["data"]["name"])
    images = data.test[:100]
    labels = data.test_labels[:100] if model.data_spec.takes_condition else None
    log_prob = tfr.log_prob(model, images, labels, batch_size=50)
    bits = -log_prob / (math.prod(images.shape[1:]) * math.log(2))
    # The card is of all test images, with other noise.
    error = bits.std(ddof=1) / math.sqrt(len(bits)) if len(images) < len(data.test) else 0.0
    assert abs(bits.mean() - card["bits/dim"]["test"]) < 0.01 + 4 * error


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.graph
@pytest.mark.parametrize("only_log_prob", [["log_prob_uint8"]], indirect=True)
@pytest.mark.parametrize("name", ["digits_label", "photos"])
def test_served_scores_are_those_of_the_model(tmp_path, name, only_log_prob):
    model = tfr.FlowModel.from_preset(name)
    data = tfr.data.load_arrays(name.removesuffix("_label"))
    images, inputs = data.test[:100], {}
    if model.data_spec.takes_condition:
        inputs["conditional_input"] = data.test_labels[:100].astype(np.int32)
    model.export(tmp_path / "1")
    served = tf.saved_model.load(tmp_path / "1")
    log_prob = served.log_prob_uint8(images, seed=model.seed, **inputs)["log_prob"]
    expected = tfr.log_prob(model, images, **inputs)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-4)
