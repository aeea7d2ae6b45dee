"""`fit` says once where convolutions would be faster with oneDNN."""

import platform

import flow_testing as ft
import pytest
import tensorflow as tf
from absl import logging

import tfp_realnvp as tfr
from tfp_realnvp.internal import private_api
from tfp_realnvp.training.processor import advise_onednn

_VARIABLE = "TF_ENABLE_ONEDNN_OPTS"


@pytest.fixture
def logged(monkeypatch):
    """Returns the warnings of an x86 processor without VNNI and without a GPU."""
    messages = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: messages.append(text % args))
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(private_api, "is_onednn_enabled", lambda: False)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: [])
    monkeypatch.delenv(_VARIABLE, raising=False)
    advise_onednn.cache_clear()
    yield messages
    advise_onednn.cache_clear()


@pytest.mark.eager
def test_fit_names_the_setting_once(logged):
    model = tfr.FlowModel(ft.flow_distribution((4, 4, 1), num_scales=1, num_couplings=1))
    model.compile()
    for _ in range(2):
        model.fit(ft.grey_levels(4, (4, 4, 1)), batch_size=4, verbose=0)
    assert len(logged) == 1 and f"{_VARIABLE}=1" in logged[0]


_SETTINGS = {
    "set by the user": lambda patch: patch.setenv(_VARIABLE, "0"),
    "on by default": lambda patch: patch.setattr(private_api, "is_onednn_enabled", lambda: True),
    "another processor": lambda patch: patch.setattr(platform, "machine", lambda: "aarch64"),
    "a GPU": lambda patch: patch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU"]),
}


@pytest.mark.parametrize("setting", _SETTINGS)
def test_nothing_is_said_where_it_is(setting, logged, monkeypatch):
    _SETTINGS[setting](monkeypatch)
    advise_onednn()
    assert not logged
