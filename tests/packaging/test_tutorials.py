"""Runs each tutorial, shortened, in a fresh process and an empty folder, as a reader would."""

import pathlib

import forked
import pytest

_FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "tutorials"
_TUTORIALS = sorted(_FOLDER.glob("*.py"))
# In so few steps TensorFlow's optimizations of graphs take longer than they save.
_BEFORE = """
import flow_testing as ft
import tensorflow as tf
ft.construct_small_flows()
tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
"""


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("path", _TUTORIALS, ids=lambda path: path.stem)
def test_tutorial(path, tmp_path):
    code = forked.script(path, TUTORIALS_SHORT="1", MPLBACKEND="Agg")
    exit_code, output = forked.run(_BEFORE + code, tmp_path)
    assert exit_code == 0, output[-5_000:]
    assert not list(tmp_path.iterdir()), "files of a tutorial belong in a temporary folder"


def test_tutorials_are_found():
    assert [path.name[0] for path in _TUTORIALS] == list("12345678")


@pytest.mark.parametrize("path", _TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_is_a_text_notebook(path):
    cells = path.read_text(encoding="utf-8").split("# %%")
    assert cells[0] == "", "expected a cell at the first line"
    assert cells[1].startswith(" [markdown]\n# # "), "expected a title in the first cell"
    assert any("assert " in cell or "np.testing." in cell for cell in cells[1:])
