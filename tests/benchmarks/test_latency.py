"""The benchmark of waiting times."""

import re
import time

import flow_testing as ft
import pytest

import tfp_realnvp as tfr
from benchmarks import latency

pytestmark = pytest.mark.full


def test_milliseconds_of_calls_in_turns():
    order = []
    calls = [lambda: order.append("fast"), lambda: (order.append("slow"), time.sleep(0.01))]
    times = latency.milliseconds(calls, rounds=3, warm_up=1)
    assert times.shape == (2, 3) and order == ["fast", "slow"] * 4
    assert times[1].min() >= 10 > times[0].min()


@pytest.mark.usefixtures("only_log_prob")
def test_requests(capsys, monkeypatch):
    small = tfr.FlowModel(ft.flow_distribution((4, 4, 1), network_fn=ft.convolution))
    monkeypatch.setattr(latency.tfr.FlowModel, "from_preset", lambda name: small)
    latency.requests(rounds=1, num_threads=2)
    number, threads, median, last = map(
        float, re.findall(r"[\d.]+", capsys.readouterr().out.splitlines()[-1])
    )
    assert (number, threads) == (50, 2) and 0 < median <= last
