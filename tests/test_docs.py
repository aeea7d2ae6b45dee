"""Runs the examples in the docstrings of every module, as in a fresh Python session."""

import doctest
import importlib
import pkgutil

import pytest

import tfp_realnvp

_MODULES = [
    "tfp_realnvp",
    *sorted(module.name for module in pkgutil.walk_packages(tfp_realnvp.__path__, "tfp_realnvp.")),
]


@pytest.mark.parametrize("name", _MODULES)
def test_docstring_examples(name):
    results = doctest.testmod(
        importlib.import_module(name),
        # An example imports what it uses: the names of its module are not defined.
        globs={},
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    assert results.failed == 0, f"{results.failed} of {results.attempted} examples failed"


def test_the_walk_finds_subpackages():
    assert "tfp_realnvp.data.load_arrays" in _MODULES
