"""Where features meet: relations between results, for configurations with each pair of features."""

import concurrent.futures
import functools
import itertools

import forked
import pytest
import tensorflow as tf
from hardening import configurations as cf
from hardening.covering_array import covering_array
from hardening.effort import share
from hardening.relations import RELATIONS, check


def test_each_pair_of_values_that_may_meet_meets():
    features = {"a": (0, 1, 2), "b": (0, 1), "c": (0, 1, 2), "d": (0, 1, 2, 3)}
    rules = [lambda a, b: a <= b, lambda b, c, d: b + c + d != 1]
    table = itertools.product(*features.values())
    allowed = [row for row in table if rules[0](*row[:2]) and rules[1](*row[1:])]
    rows = [tuple(row.values()) for row in covering_array(features, rules)]

    def pairs(rows):
        return {pair for row in rows for pair in itertools.combinations(enumerate(row), 2)}

    assert set(rows) <= set(allowed) and pairs(rows) == pairs(allowed)
    assert len(rows) < len(allowed) / 2


def cases():
    """Returns relations and configurations: a few for each relation, or all."""
    for name, (_, applies, quick, _) in RELATIONS.items():
        left = {i: c for i, c in enumerate(cf.configurations()) if applies(c)}
        chosen = {}
        for wish in quick:
            wish = {**wish, "replicas": wish.get("replicas", 1)}  # processes take time

            def misses(i, wish=wish, left=left):
                return [getattr(left[i], feature) != value for feature, value in wish.items()]

            best = min(left, key=misses)
            chosen[best] = left.pop(best)
        for i, c in sorted(share(chosen, chosen | left).items()):
            yield pytest.param(name, c, id=f"{name}-{i}")  # the number in the array


@functools.cache
def _two_devices():
    """Returns a process with two logical devices: a process makes its devices once."""
    return concurrent.futures.ProcessPoolExecutor(1, forked.context(), _make_two_devices)


def _make_two_devices():
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.mark.parametrize(("name", "configuration"), [*cases()])
def test_relation(name, configuration):
    print(configuration)  # pytest shows it if the test fails
    if configuration.replicas == 2:
        _two_devices().submit(check, name, configuration).result()
    else:
        check(name, configuration)
