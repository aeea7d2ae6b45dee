"""Two replicas train as one device does with the same batch."""

import pathlib
import subprocess
import sys

import pytest

pytestmark = pytest.mark.full

_SCRIPT = pathlib.Path(__file__).with_name("two_devices.py")


def test_two_replicas_are_as_one_device():
    run = subprocess.run([sys.executable, _SCRIPT], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr[-4000:]
