"""Runs the Python blocks of the README and of the pages, each as in a fresh session."""

import pathlib
import re

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_BLOCKS = [
    pytest.param(block, id=f"{path.stem}-{number}")
    for path in [_ROOT / "README.md", *sorted(_ROOT.glob("docs/*.md"))]
    for number, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    )
]


@pytest.mark.parametrize("block", _BLOCKS)
def test_block(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "<block>", "exec"), {"__name__": "__main__"})


def test_blocks_are_found():
    assert len(_BLOCKS) >= 7
    readme = (_ROOT / "README.md").read_text().splitlines()
    assert len(readme) <= 150, f"the README has {len(readme)} lines"
