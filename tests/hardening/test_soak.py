"""Many eager calls leave nothing behind."""

import gc
import os

import flow_testing as ft
import numpy as np
import pytest
from hardening.effort import share
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

pytestmark = pytest.mark.full


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
