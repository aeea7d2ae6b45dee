"""Runs the Python blocks of the README and of the pages of the site."""

import dataclasses
import functools
import pathlib
import re

import flow_testing as ft
import pytest

import tfp_realnvp as tfr
from tfp_realnvp.latents import completion

pytestmark = pytest.mark.usefixtures("no_graph_optimizer")

_ROOT = pathlib.Path(__file__).parents[2]
_PAGES = sorted(_ROOT.glob("docs/*.md"))


def _blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


# A block of the README runs as in a fresh session, those of a page one after the other. The first
# block of the README runs in `test_wheel.py`.
_SESSIONS = [
    pytest.param([block], id=f"README-{number}")
    for number, block in enumerate(_blocks(_ROOT / "README.md"))
    if number
] + [pytest.param(blocks, id=path.stem) for path in _PAGES if (blocks := _blocks(path))]


@pytest.fixture
def short(monkeypatch):
    """Keeps few epochs, couplings, digits, particles and steps of Monte Carlo."""
    ft.construct_small_flows(monkeypatch.setattr)
    few = {"num_burnin_steps": 2, "num_leapfrog_steps": 1}
    complete = functools.partial(tfr.latents.complete, **few)
    monkeypatch.setattr(tfr.latents, "complete", complete)
    monkeypatch.setattr(completion, "_MIN_PARTICLES", 20)
    fit, load_arrays = tfr.FlowModel.fit, tfr.data.load_arrays

    def fit_shortly(*args, epochs=1, **options):
        return fit(*args, epochs=min(2, epochs), **options)

    def load_few(name):
        arrays = load_arrays(name)
        if name != "digits":
            return arrays
        sizes = {"train": 128, "train_labels": 128, "test": 40, "test_labels": 40}
        few = {part: getattr(arrays, part)[:size] for part, size in sizes.items()}
        return dataclasses.replace(arrays, **few)

    monkeypatch.setattr(tfr.FlowModel, "fit", fit_shortly)
    monkeypatch.setattr(tfr.data, "load_arrays", load_few)


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("blocks", _SESSIONS)
def test_blocks(blocks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session = {"__name__": "__main__"}
    for number, block in enumerate(blocks):
        exec(compile(block, f"<block {number}>", "exec"), session)


def test_blocks_are_found():
    assert len(_SESSIONS) >= 7
    readme = (_ROOT / "README.md").read_text().splitlines()
    assert len(readme) <= 150, f"the README has {len(readme)} lines"
