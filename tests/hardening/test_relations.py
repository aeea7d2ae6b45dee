"""Where features meet: relations between results, over pairs of features."""

import concurrent.futures
import functools
import itertools
import multiprocessing

import pytest
import tensorflow as tf
from hardening import configurations as cf
from hardening.covering_array import covering_array
from hardening.effort import share
from hardening.relations import RELATIONS, check


def test_each_pair_of_values_that_may_meet_meets():
    features = {"a": (0, 1, 2), "b": (0, 1), "c": (0, 1, 2), "d": (0, 1, 2, 3)}
    rows = covering_array(features, [lambda a, b: a <= b, lambda b, c, d: b + c + d != 1])
    assert all(r["a"] <= r["b"] and r["b"] + r["c"] + r["d"] != 1 for r in rows)
    everything = (dict(zip(features, row, strict=True)) for row in itertools.product(*features.values()))
    allowed = [r for r in everything if r["a"] <= r["b"] and r["b"] + r["c"] + r["d"] != 1]
    pairs = lambda rows: {p for r in rows for p in itertools.combinations(r.items(), 2)}  # noqa: E731
    assert pairs(rows) == pairs(allowed)
    assert len(rows) < len(allowed) / 2
    assert len(covering_array(cf.FEATURES, cf.CONSTRAINTS)) < 60


def cases():
    for name, (_, applies, quick) in RELATIONS.items():
        chosen = [(i, c) for i, c in enumerate(cf.configurations()) if applies(c)]
        for i, c in chosen[: share(quick, None)]:
            yield pytest.param(name, c, id=f"{name}-{i}")


@functools.cache
def two_devices():
    """Returns a process of two logical devices, which a process makes once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tfp_realnvp.tables"])
    return concurrent.futures.ProcessPoolExecutor(1, context, _make_two_devices)


def _make_two_devices():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.mark.parametrize(("name", "configuration"), cases())
def test_relation(name, configuration):
    print(configuration)
    if configuration.replicas == 2:
        two_devices().submit(check, name, configuration).result()
    else:
        check(name, configuration)
