"""Runs the scripts of examples/ in this process, so that TensorFlow starts only once."""

import importlib.util
import pathlib
import sys

import pytest
from absl import flags

_EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"

# The scripts import modules from their own folder.
sys.path.insert(0, str(_EXAMPLES))


@pytest.fixture(scope="session")
def run_script():
    """Returns a function that runs a script by name with flags."""
    return _run


def _run(name, *arguments):
    before = set(flags.FLAGS)
    spec = importlib.util.spec_from_file_location(name, _EXAMPLES / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[name] = script
    try:
        spec.loader.exec_module(script)
        flags.FLAGS([name, *map(str, arguments)])
        script.main([])
    finally:
        # Scripts define flags of the same names.
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        del sys.modules[name]
