"""Runs the Python blocks of the README and of the pages of the site."""

import dataclasses
import pathlib
import re

import pytest

import tfp_realnvp as tfr

pytestmark = pytest.mark.usefixtures("no_graph_optimizer")

_ROOT = pathlib.Path(__file__).parents[2]
_PAGES = sorted(_ROOT.glob("docs/*.md"))


def _blocks(path):
    return re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


# A block of the README runs as in a fresh session, those of a page one after the other.
_SESSIONS = [
    pytest.param([block], id=f"README-{number}")
    for number, block in enumerate(_blocks(_ROOT / "README.md"))
] + [pytest.param(blocks, id=path.stem) for path in _PAGES if (blocks := _blocks(path))]


@pytest.fixture
def short(monkeypatch):
    """Ends each `fit` after two steps, and leaves 40 test images."""
    fit, load_arrays = tfr.FlowModel.fit, tfr.data.load_arrays
    two_steps = {"epochs": 1, "steps_per_epoch": 2}

    def load(name):
        arrays = load_arrays(name)
        labels = {} if arrays.test_labels is None else {"test_labels": arrays.test_labels[:40]}
        return dataclasses.replace(arrays, test=arrays.test[:40], **labels)

    monkeypatch.setattr(tfr.FlowModel, "fit", lambda *args, **kw: fit(*args, **{**kw, **two_steps}))
    monkeypatch.setattr(tfr.data, "load_arrays", load)


@pytest.mark.full
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
