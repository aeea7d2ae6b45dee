"""What is said once about the processor: `fit` about oneDNN, `compile` about XLA."""

import platform

import flow_testing as ft
import pytest
import tensorflow as tf
from absl import logging

import tfp_realnvp as tfr
from tfp_realnvp.internal import private_api, runtime

_VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
_SETTINGS = {
    "off": lambda patch: None,
    "set by the user": lambda patch: patch.setenv(_VARIABLE, "0"),
    "on by default": lambda patch: patch.setattr(private_api, "is_onednn_enabled", lambda: True),
    "another processor": lambda patch: patch.setattr(platform, "machine", lambda: "aarch64"),
    "a GPU": lambda patch: patch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU"]),
}


@pytest.fixture
def messages(monkeypatch):
    """Returns the warnings that are logged, of a process that has logged none."""
    found = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: found.append(text % args))
    for advice in (runtime.advise_onednn, runtime.advise_no_xla):
        advice.cache_clear()
    return found


def _model():
    return tfr.FlowModel(ft.flow_distribution((4, 4, 1), num_scales=1, num_couplings=1))


@pytest.mark.eager
@pytest.mark.parametrize("setting", _SETTINGS)
def test_fit_names_the_setting_once(setting, messages, monkeypatch):
    # An x86 processor without VNNI and without a GPU.
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(private_api, "is_onednn_enabled", lambda: False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    monkeypatch.delenv(_VARIABLE, raising=False)
    _SETTINGS[setting](monkeypatch)
    if setting == "off":
        model = _model()
        model.compile()
        for _ in range(2):
            model.fit(ft.grey_levels(4, (4, 4, 1)), batch_size=4, verbose=0)
    else:
        runtime.advise_onednn()
    assert len(messages) == (setting == "off")
    assert not messages or f"{_VARIABLE}=1" in messages[0]


@pytest.mark.parametrize("kinds", [["CPU"], ["CPU", "GPU"]])
def test_compile_advises_against_xla_once(kinds, messages, monkeypatch):
    devices = [tf.config.PhysicalDevice(kind, kind) for kind in kinds]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: devices)
    model = _model()
    model.compile(jit_compile=False)
    assert not messages
    for _ in range(2):
        model.compile(jit_compile=True)
    assert len(messages) == (kinds == ["CPU"])
    assert not messages or "leave out jit_compile" in messages[0]
