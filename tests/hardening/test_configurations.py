"""Fuzz: a changed configuration of a saved distribution gives one, or says what is wrong."""

import copy

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp
from hardening.effort import cases
from hypothesis import given
from hypothesis import strategies as st

import tfp_realnvp as tfr
from tfp_realnvp.saving.keras_config import deserialize, serialize

pytestmark = pytest.mark.full

tfd = tfp.distributions

CHAIN = tfr.FlowChain(
    [
        tfr.PixelLogit(),
        tfr.AffineCoupling(tfr.CheckerboardMask(1), ft.network(1, 2, checkerboard_parity=1)),
        tfr.RealNVPImage((4, 4, 1), 1, 0, 2, alpha=None, num_couplings=1),
    ]
)
BASE = tfd.Independent(tfd.Normal(tf.Variable(np.zeros([4, 4, 1], np.float32)), 1.0), 3)
CONFIG = serialize(tfd.TransformedDistribution(BASE, CHAIN), "distribution")


def paths(value, path=()):
    """Yields where something is in nested dictionaries and lists, all but the root."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, (dict, list)):
            yield from paths(inner, (*path, key))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.floats(-2, 2) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=3,
)
# Loss of a key, and values that mean something elsewhere in the configuration.
REMOVE = object()
CHANGES = JSON | st.just(REMOVE) | st.sampled_from(["os.system", "reference", "tensor", "keras"])


@cases(quick=40, full=300)
@given(path=st.sampled_from(sorted(paths(CONFIG), key=repr)), change=CHANGES)
def test_a_changed_configuration(path, change):
    config = copy.deepcopy(CONFIG)
    parent = config
    for key in path[:-1]:
        parent = parent[key]
    if change is REMOVE:
        del parent[path[-1]]
    else:
        parent[path[-1]] = change
    try:
        distribution = deserialize(config, tfd.Distribution)
    except ValueError as error:
        assert "expected " in str(error), error
    else:
        assert isinstance(distribution, tfd.Distribution)
