"""Many eager calls leave nothing behind."""

import gc
import os
import subprocess
import sys

import flow_testing as ft
import numpy as np
import pytest
import tensorflow_probability as tfp
from hardening.effort import share

import tfp_realnvp as tfr

pytestmark = pytest.mark.full

tfd = tfp.distributions

SHAPE = (4, 4, 1)


def resident_bytes():
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_is_flat():
    couplings = [
        tfr.AffineCoupling(tfr.CheckerboardMask(parity), tfr.ShallowConv(2, 3)) for parity in (0, 1)
    ]
    chain = tfr.FlowChain([tfr.PixelLogit(), *couplings, tfr.BatchNormalization(num_channels=1)])
    flow = tfd.TransformedDistribution(ft.standard_normal(SHAPE), chain)
    images = ft.pixels([2, *SHAPE])

    flow.log_prob(images)
    ft.randomize(chain)

    def calls(number):
        for seed in range(number // 2):
            sample = flow.sample(2, seed=(0, seed))
            # New tensors, and one that lives on: both are keys of the cache.
            log_prob = flow.log_prob(sample if seed % 2 else images)
        assert np.isfinite(log_prob).all()

    calls(share(50, 1000))
    objects, size = len(gc.get_objects()), resident_bytes()
    calls(share(200, 20_000))
    grown = resident_bytes() / size - 1
    print(f"resident memory grew by {grown:.2%} from {size / 2**20:.0f} MiB")
    assert grown < 0.02
    # One object for each tenth call would be seen here, long before it is in the memory.
    assert len(gc.get_objects()) - objects < share(200, 20_000) / 10


_SAMPLES = """
import gc, os
import tensorflow_probability as tfp
import tfp_realnvp as tfr

tfd = tfp.distributions
base = tfd.Sample(tfd.Normal(0.0, 1.0), [2])
flow = tfd.TransformedDistribution(base, tfr.RealNVPVector(2, num_couplings=1, num_filters=4))


def resident_kilobytes():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


def calls(number, **options):
    for _ in range(number):
        flow.sample(2, **options)


for options in ({}, {"seed": (0, 1)}):
    calls(50, **options)
    before = resident_kilobytes()
    calls(100, **options)
    print((resident_kilobytes() - before) / 100)
"""


def test_samples_leave_no_memory():
    # A process of its own: after `tf.random.set_seed`, TensorFlow keeps a kernel for each call
    # without a seed, which takes 20 to 40 KB.
    command = [sys.executable, "-c", _SAMPLES]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    kilobytes = [float(line) for line in printed.split()]
    assert len(kilobytes) == 2 and max(kilobytes) < 5, kilobytes
