"""Runs the scripts of examples/ in this process, so that TensorFlow starts only once."""

import contextlib
import importlib.util
import pathlib
import sys

import flow_testing as ft
import keras
import numpy as np
import pytest
from absl import flags

_EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(_EXAMPLES))  # as if a script was run: scripts import `datasets`


@pytest.fixture(scope="session")
def run_script():
    """Returns a function that runs a script by name with flags.

    Keyword arguments replace constants of the script, and `function` its `main`.
    """

    def run(name, *arguments, function="main", **constants):
        with _loaded(name) as script:
            vars(script).update(constants)
            flags.FLAGS([name, *map(str, arguments)])
            getattr(script, function)([])

    return run


@pytest.fixture
def printed_by(run_script, capsys):
    """Returns a function that runs a script, with its flags in a line, and returns its output."""

    def run(name, options, output_dir=None, **constants):
        folder = [] if output_dir is None else [f"--output_dir={output_dir}"]
        run_script(name, *folder, *options.split(), **constants)
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="session")
def load_script():
    """Returns a function that returns a script as a module, for functions that use no flags."""

    def load(name):
        with _loaded(name) as script:
            return script

    return load


@pytest.fixture
def labeled_images(tmp_path):
    """Returns a file of images of three classes, each darker than the next."""
    arrays = {}
    for split, number in (("train", 60), ("test", 10)):
        labels = np.arange(number) % 3
        brightness = (85 * labels).astype(np.uint8).reshape(-1, 1, 1, 1)
        arrays[split] = ft.grey_levels(number, (4, 4, 1)) // 3 + brightness
        arrays[f"{split}_labels"] = labels
    np.savez(tmp_path / "images.npz", **arrays)
    return tmp_path / "images.npz"


@contextlib.contextmanager
def _loaded(name):
    before = set(flags.FLAGS)
    spec = importlib.util.spec_from_file_location(name, _EXAMPLES / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[name] = script
    try:
        spec.loader.exec_module(script)
        yield script
    finally:
        # Scripts define flags of the same names.
        for flag in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, flag)
        del sys.modules[name]
        keras.config.set_dtype_policy("float32")
