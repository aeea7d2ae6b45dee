"""Advice about a setting of the processor that training depends on."""

from __future__ import annotations

import functools
import os
import platform

import tensorflow as tf
from absl import logging

from tfp_realnvp.internal import private_api

__all__ = ["advise_onednn"]

_VARIABLE = "TF_ENABLE_ONEDNN_OPTS"


@functools.cache
def advise_onednn() -> None:
    """Logs a warning, once in a process, if convolutions would be faster with oneDNN.

    TensorFlow uses oneDNN by default on x86 processors with VNNI instructions alone, and reads the
    environment variable when it is imported. Where the variable is set, the user has chosen.
    """
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not is_x86 or _VARIABLE in os.environ or private_api.is_onednn_enabled():
        return
    if not tf.config.list_physical_devices("GPU"):
        logging.warning(
            "Training is about 1.4 times as fast on this processor with oneDNN, which TensorFlow "
            "leaves off here: set the environment variable %s=1 before TensorFlow is imported.",
            _VARIABLE,
        )
