"""Each example runs: what it prints and draws is in the other files."""

import functools
import pathlib

import pytest

import tfp_realnvp as tfr

_HERE = pathlib.Path(__file__)


@pytest.mark.full
@pytest.mark.usefixtures("no_graph_optimizer")
def test_a_custom_training_loop(load_script, capsys, monkeypatch):
    small = functools.partial(tfr.RealNVPImage, num_couplings=1, num_filters=4)
    monkeypatch.setattr(tfr, "RealNVPImage", small)
    load_script("transformed_distribution").main(num_steps=1)
    assert "samples (4, 8, 8, 1)" in capsys.readouterr().out


def test_each_example_is_run():
    texts = [path.read_text() for path in _HERE.parent.glob("test_*.py")]
    for path in (_HERE.parents[2] / "examples").glob("*.py"):
        assert any(f'"{path.stem}"' in text or path.name in text for text in texts), path.name
