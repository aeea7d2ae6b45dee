"""With `jit_compile=True` all steps of the same shapes share one program.

XLA compiles again where a value changes that it takes as a constant, for example a shape that seems
to be computed from a variable. Then each step takes seconds, and nothing else is wrong.
"""

import forked
import pytest

_SCRIPT = """
import os

# Before the first program.
os.environ["XLA_FLAGS"] += " --xla_dump_to=. --xla_dump_hlo_as_text"

import numpy as np
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

numbers, image_shape = np.random.default_rng(0), (4, 4, 1)
small = {"num_scales": 1, "num_couplings": 1, "num_filters": 4}
splines = {"num_filters": 4, "transformer": "rational_quadratic_spline"}
for flow, optimizer, *labels in (
    (tfr.RealNVPVector(3, 2, **splines), tfr.FusedAdam),
    (tfr.RealNVPVector(3, 2, num_classes=2, **splines), tfr.FusedAdam, np.arange(8) % 2),
    (tfr.RealNVPImage.compact(image_shape, **small), tfr.Muon),
    (tfr.RealNVPImage(image_shape, num_blocks=1, **small), tfr.FusedAdam),
):
    shape = image_shape if flow.event_ndims == 3 else (3,)
    events = numbers.integers(0, 256, (8, *shape))
    base = tfd.Sample(tfd.Normal(0.0, 1.0), shape)
    model = tfr.FlowModel(tfd.TransformedDistribution(base, flow))
    model.compile(optimizer(1e-2), jit_compile=True)
    model.fit(events, *labels, batch_size=4, epochs=2, verbose=0)
"""


@pytest.mark.full
@pytest.mark.slow
def test_one_program_of_each_model_for_all_steps(tmp_path):
    exit_code, output = forked.run(_SCRIPT, tmp_path)
    assert exit_code == 0, output[-4000:]
    programs = [path.name for path in tmp_path.glob("*one_step*.before_optimizations.txt")]
    assert len(programs) == 4, programs
