"""With `jit_compile=True` all steps of the same shapes share one program.

XLA compiles again where a value changes that it takes as a constant, for example a shape that seems
to be computed from a variable. Then each step takes seconds, and nothing else is wrong.
"""

import os
import pathlib
import subprocess
import sys

import pytest

_SCRIPT = """
import sys

import numpy as np
import tensorflow_probability as tfp

import tfp_realnvp as tfr

tfd = tfp.distributions
name = sys.argv[1]
numbers = np.random.default_rng(0)
optimizer = tfr.FusedAdam(1e-2)
labels = ()
if name == "compact":
    shape, optimizer = (4, 4, 1), tfr.Muon(1e-2)
    flow = tfr.RealNVPImage.compact(shape, num_scales=1, num_couplings=1, num_filters=4)
elif name == "paper":
    shape = (4, 4, 1)
    flow = tfr.RealNVPImage(shape, num_scales=1, num_couplings=1, num_blocks=1, num_filters=4)
else:
    shape, options = (3,), {"transformer": "rational_quadratic_spline"}
    if name == "labels":
        options = {"num_classes": 2}
        labels = (np.arange(8) % 2,)
    flow = tfr.RealNVPVector(3, 2, num_filters=4, **options)
events = numbers.integers(0, 256, (8, *shape)) if len(shape) == 3 else numbers.normal(size=(8, 3))
model = tfr.FlowModel(tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), shape), flow))
model.compile(optimizer, jit_compile=True)
model.fit(events, *labels, batch_size=4, epochs=2, verbose=0)
"""


@pytest.mark.full
@pytest.mark.parametrize("name", ["spline", "labels", "compact", "paper"])
def test_one_program_for_all_steps(name, tmp_path):
    flags = f"{os.environ['XLA_FLAGS']} --xla_dump_to={tmp_path} --xla_dump_hlo_as_text"
    run = subprocess.run(
        [sys.executable, "-c", _SCRIPT, name],
        env={**os.environ, "XLA_FLAGS": flags},
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    programs = [path.name for path in tmp_path.glob("*one_step*.before_optimizations.txt")]
    assert len(programs) == 1, programs
