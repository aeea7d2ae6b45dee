"""Which packages of `tfp_realnvp` import which, and which module uses private APIs."""

import ast
import itertools
import pathlib
import re

import pytest

pytestmark = pytest.mark.quick

_ROOT = pathlib.Path(__file__).parents[1] / "tfp_realnvp"

_CORE = {"internal", "pixels", "condition_spec", "networks", "bijectors"}
# The packages that each package may import.
_ALLOWED_IMPORTS = {
    "internal": set(),
    "pixels": {"internal"},
    "condition_spec": {"internal"},
    "networks": {"internal", "condition_spec"},
    "bijectors": {"internal", "pixels", "condition_spec", "networks"},
    "flows": _CORE,
    "distributions": {*_CORE, "flows"},
    "saving": {*_CORE, "flows", "distributions"},
    "training": {*_CORE, "flows", "distributions", "saving"},
    "latents": {"internal", "pixels", "bijectors", "flows", "distributions"},
    "evaluation": {*_CORE, "distributions"} - {"networks"},
    "data": {"internal", "pixels"},
    "outliers": {"internal"},
    "tables": {"internal", "flows"},
    "plots": {"internal", "pixels"},
}

_PRIVATE = ("tensorflow.python", "tensorflow.core", "tensorflow_probability.python", "keras.src")


def _imports(source):
    """Yields the line of each import of `tfp_realnvp` in a module, and the name after its dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{ast.unparse(node)}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            root, _, inner = name.partition(".")
            if root == "tfp_realnvp":
                yield node.lineno, inner


def _modules():
    return sorted(path.relative_to(_ROOT) for path in _ROOT.rglob("*.py"))


def _package(path):
    return path.parts[0].removesuffix(".py")


def test_lower_packages_do_not_import_higher_ones():
    violations = []
    for path in _modules():
        package = _package(path)
        if package == "__init__":
            continue
        assert package in _ALLOWED_IMPORTS, f"add {package} to the table in {__file__}"
        allowed = _ALLOWED_IMPORTS[package]
        violations += [
            f"tfp_realnvp/{path}:{line}: {package} imports {imported or 'tfp_realnvp'}; "
            f"it may import {', '.join(sorted(allowed)) or 'none of the other packages'}"
            for line, name in _imports((_ROOT / path).read_text())
            if (imported := name.partition(".")[0]) not in {package, *allowed}
        ]
    assert not violations, "\n" + "\n".join(violations)


def test_rows_of_the_layout_import_lower_ones_only():
    lines = (_ROOT.parent / "BUILD.md").read_text().splitlines()
    start = lines.index("| `examples/`, `benchmarks/` | scripts |") + 1
    table = itertools.takewhile(bool, lines[start:])
    rows = [re.findall(r"`(\w+)(?:/|\.py)`", line.split("|")[1]) for line in table]
    assert sorted(itertools.chain(*rows)) == sorted(_ALLOWED_IMPORTS)
    for number, row in enumerate(rows):
        lower = set(itertools.chain(*rows[number + 1 :]))
        for package in row:
            assert _ALLOWED_IMPORTS[package] <= lower, package


def test_only_private_api_imports_private_modules():
    imports = [
        f"tfp_realnvp/{path}:{node.lineno}: {ast.unparse(node)}"
        for path in _modules()
        if path != pathlib.Path("internal/private_api.py")
        for node in ast.walk(ast.parse((_ROOT / path).read_text()))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        and any(name in ast.unparse(node) for name in _PRIVATE)
    ]
    message = "private APIs belong into tfp_realnvp/internal/private_api.py:\n"
    assert not imports, message + "\n".join(imports)
