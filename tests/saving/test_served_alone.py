"""A SavedModel in a process that can import TensorFlow only."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from flow_testing import flow_distribution, grey_levels, pixels

import tfp_realnvp as tfr

pytestmark = [pytest.mark.full, pytest.mark.core]

SERVE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow_probability", "tf_keras", "tfp_realnvp"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import numpy as np
import tensorflow as tf
# TensorFlow imports Keras. Remove it, and make any further import of it fail.
for name in [name for name in sys.modules if name.split(".")[0] == "keras"]:
    sys.modules[name] = None

folder = sys.argv[1]
served = tf.saved_model.load(f"{folder}/1")
results = []
with np.load(f"{folder}/images.npz") as inputs:
    for images in inputs.values():
        log_prob = served.signatures["log_prob"](images=tf.constant(images))["log_prob"]
        results.append(log_prob.numpy())
results.append(served.sample(2, 3, 0.8)["images"].numpy())
np.savez(f"{folder}/results.npz", *results)
assert not any(sys.modules.get(name) for name in ("keras", "tf_keras", "tfp_realnvp"))
assert "tensorflow_probability" not in sys.modules
"""

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "serve.py"


def test_tensorflow_serves_it_without_other_packages(tmp_path):
    flow = flow_distribution((4, 4, 1), num_scales=1, num_blocks=0)
    tfr.export_saved_model(flow, tmp_path / "1")
    batches = [pixels((1, 4, 4, 1)), pixels((3, 4, 4, 1)), pixels((2, 8, 4, 1))]
    np.savez(tmp_path / "images.npz", *batches)
    np.save(tmp_path / "grey_levels.npy", grey_levels(3))

    subprocess.run([sys.executable, "-c", SERVE, tmp_path], check=True)

    with np.load(tmp_path / "results.npz") as results:
        *log_probs, samples = results.values()
    for images, log_prob in zip(batches, log_probs, strict=True):
        latents, ildj = flow.bijector.inverse_and_log_det(images)
        normal = -0.5 * (latents**2 + np.log(2 * np.pi))
        expected = np.sum(normal, axis=(1, 2, 3)) + ildj
        np.testing.assert_allclose(log_prob, expected, rtol=1e-5)
    latents = 0.8 * flow.distribution.sample(2, seed=(3, 0))
    np.testing.assert_allclose(samples, flow.bijector.forward(latents), rtol=1e-5, atol=1e-3)

    command = [sys.executable, EXAMPLE, tmp_path / "1", f"--images={tmp_path}/grey_levels.npy"]
    output = subprocess.run(
        [*command, f"--output={tmp_path}/samples.npy", "--num_samples=5"],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    ).stdout
    assert "bits/dim" in output
    written = np.load(tmp_path / "samples.npy")
    assert (written.shape, written.dtype) == ((5, 4, 4, 1), np.uint8)
