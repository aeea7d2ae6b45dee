"""Two worker processes train as one process does with the same batch."""

import json
import pathlib

import pytest
import strategy_testing as st
import tensorflow as tf

pytestmark = [pytest.mark.full, pytest.mark.slow]

_SCRIPT = pathlib.Path(__file__).with_name("two_workers.py")


def test_two_workers_train_as_one_process(tmp_path):
    processes = st.start_workers(_SCRIPT, [tmp_path], tmp_path)
    alone = st.train(tf.distribute.get_strategy(), tmp_path / "alone")
    st.finish_workers(processes, tmp_path)
    results = [json.loads((tmp_path / f"results{i}.json").read_text()) for i in range(2)]
    # Metrics and weights are those of both, to the last bit.
    assert results[0] == results[1]
    assert results[0]["steps"] == st.STEPS
    st.assert_same(results[0], alone)
    # The chief has written what one process does.
    files = [
        sorted(path.name for path in (tmp_path / run).rglob("*")) for run in ("training", "alone")
    ]
    assert files[0] == files[1] and "best.weights.h5" in files[0]
