"""The script that finds defects, with small networks that are hardly trained."""

import re

import numpy as np
import pytest
from absl import app
from PIL import Image

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


def test_defects(run_script, capsys, tmp_path):
    run_script(
        "defects",
        f"--output_dir={tmp_path}",
        "--num_train=60",
        "--num_test=12",
        "--num_textures=200",
        "--num_couplings=2",
        "--epochs=4",
    )
    output = capsys.readouterr().out
    rows = re.findall(r"^(\S.*?)  .*?((?:\d\.\d+, \d\.\d+\s*){4})$", output, re.MULTILINE)
    areas = {name: np.array(re.findall(r"\d\.\d+", cells), float) for name, cells in rows}
    assert len(areas) == 4
    # Pixels of missing threads, in spite of the short training.
    assert areas["flow, latents alone"][-1] > 0.7
    with Image.open(tmp_path / "defects.png") as figure:
        figure.load()


def test_a_network_of_keras_applications(run_script, capsys, tmp_path):
    run_script(
        "defects",
        f"--output_dir={tmp_path}",
        "--extractor=MobileNetV2",
        "--weights=none",
        "--num_train=8",
        "--num_test=3",
        "--num_couplings=2",
        "--epochs=1",
    )
    assert "Features of an image: (8, 8, 32)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["--extractor=model"], app.UsageError, "such as MobileNetV2, got 'model'"),
        (["--extractor=VGG16", "--weights=none"], app.UsageError, "batch normalization, got VGG16"),
        (["--extractor=VGG16", "--weights=a.h5"], SystemExit, "could not be loaded.*--weights"),
    ],
)
def test_extractors_that_cannot_be_used(run_script, arguments, error, message):
    with pytest.raises(error, match=message):
        run_script("defects", "--num_train=2", "--num_test=3", *arguments)
