"""Two replicas train as one device does with the same batch."""

import pathlib

import forked
import pytest

pytestmark = [pytest.mark.full, pytest.mark.slow]

_SCRIPT = pathlib.Path(__file__).with_name("two_devices.py")


def test_two_replicas_are_as_one_device(tmp_path):
    exit_code, output = forked.run(forked.script(_SCRIPT), tmp_path)
    assert exit_code == 0, output[-4000:]
