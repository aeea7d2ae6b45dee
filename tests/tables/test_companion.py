"""The tables use the flows by their public names, and the flows do not know of them."""

import ast
import pathlib

import pytest

import tfp_realnvp as tfr

pytestmark = pytest.mark.quick

_ROOT = pathlib.Path(tfr.__file__).parent


def _imports(path):
    """Yields the module, and the name in it, of each import of `tfp_realnvp` in a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""


def test_tables_import_public_names():
    names = []
    for path in sorted((_ROOT / "tables").glob("*.py")):
        for module, name in _imports(path):
            if module.partition(".")[0] != "tfp_realnvp" or module.startswith("tfp_realnvp.tables"):
                continue
            names.append(module)
            allowed = module == "tfp_realnvp" or (
                module == "tfp_realnvp.internal" and name in ("validation", "optional_packages")
            )
            assert allowed, f"{path.name} imports {module}.{name}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if node.value.id == "tfr":
                    assert node.attr in tfr.__all__, f"{path.name} uses tfr.{node.attr}"
    assert "tfp_realnvp" in names and "tfp_realnvp.internal" in names


def test_nothing_else_imports_tables():
    for path in sorted(_ROOT.rglob("*.py")):
        if path.parent.name != "tables" and path != _ROOT / "__init__.py":
            for module, name in _imports(path):
                assert "tables" not in f"{module}.{name}".split("."), f"{path} imports {module}"
