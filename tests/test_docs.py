"""Examples in docstrings, run as in a fresh Python session; and public names on the site."""

import ast
import doctest
import importlib
import pathlib
import pkgutil
import re

import pytest

import tfp_realnvp

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]

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


def test_every_argument_is_described():
    missing = []
    for path in sorted(pathlib.Path(tfp_realnvp.__path__[0]).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            text = (ast.get_docstring(node) or "") if isinstance(node, ast.FunctionDef) else ""
            if "Args:\n" in text:
                described = re.findall(r"^ {2}([\w*, ]+):", text.split("Args:\n")[1], re.M)
                names = {name.strip("* ") for line in described for name in line.split(",")}
                given = [*ast.iter_child_nodes(node.args)]
                arguments = {a.arg for a in given if isinstance(a, ast.arg)} - {"self", "cls"}
                missing += [f"{path.name}: {node.name}({name})" for name in arguments - names]
    assert not missing


def test_every_public_name_is_on_a_page():
    names, module = [], None
    for line in (pathlib.Path(__file__).parents[1] / "docs" / "api.rst").read_text().splitlines():
        if match := re.fullmatch(r"\.\. currentmodule:: (\S+)", line):
            module = match[1]
        elif match := re.fullmatch(r"   (\w+)", line):
            names.append(f"{module}.{match[1]}")
    modules = ["tfp_realnvp", *(f"tfp_realnvp.{name}" for name in tfp_realnvp._MODULES)]
    public = [f"{module}.{name}" for module in modules for name in _public(module)]
    public += [f"tfp_realnvp.{name}" for name in tfp_realnvp._ESTIMATORS]
    assert sorted(names) == sorted(public)


def _public(module):
    return importlib.import_module(module).__all__
