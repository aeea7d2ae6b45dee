import doctest
import importlib
import json
import math

import keras
import numpy as np
import pytest

from benchmarks import comparison, plan, precision, report
from benchmarks.contenders import NotAvailable, contender_class
from benchmarks.sizes import SIZES
from benchmarks.spec import Spec
from benchmarks.worker_process import WorkerError, WorkerProcess

TINY = SIZES["tiny"]
GLOW = {"num_blocks": 2, "num_steps": 1, "num_hidden": 4}


def _make(name, **options):
    if name == "pytorch":
        # More threads than free cores wait for each other.
        pytest.importorskip("torch").set_num_threads(1)
    return contender_class(name)(TINY, **options)


@pytest.mark.parametrize(
    ("name", "options"), [("ours", {}), ("plain_tfp", {}), ("glow", GLOW), ("pytorch", {})]
)
def test_operations(name, options):
    contender = _make(name, **options)
    assert math.isfinite(contender.train_step())
    log_prob, samples = contender.log_prob(), contender.sample()
    assert log_prob.shape == (TINY.batch_size,) and np.isfinite(log_prob).all()
    assert samples.shape == (TINY.batch_size, *TINY.image_shape) and np.isfinite(samples).all()
    # `log_prob` has a noise of 1/2, and `score` a random one.
    np.testing.assert_allclose(contender.score(contender.images), log_prob, rtol=0.02)
    contender.train_steps(10)
    assert contender.log_prob().mean() > log_prob.mean()


def test_the_plain_model_is_the_same_function():
    import tfp_realnvp as tfr

    ours, plain = _make("ours"), _make("plain_tfp")
    couplings = [m for m in ours.distribution.submodules if isinstance(m, tfr.AffineCoupling)]
    # Both from the data to the latents.
    for mine, theirs in zip(couplings, plain._couplings, strict=True):
        theirs._network.set_weights(mine.network.get_weights())
    np.testing.assert_allclose(ours.log_prob(), plain.log_prob(), rtol=1e-5)
    assert ours.num_parameters == plain.num_parameters


def test_pytorch_is_a_bijection_with_its_log_det():
    torch = pytest.importorskip("torch")
    contender = _make("pytorch")
    contender.train_steps(2)
    flow = contender.flow.eval().double()
    values = contender._values[:1].double()

    def encode(flat):
        return flow.inverse(flat.reshape(values.shape))[0].flatten()

    with torch.no_grad():
        latents, log_det = flow.inverse(values)
        np.testing.assert_allclose(flow(latents), values, atol=1e-8)
    jacobian = torch.autograd.functional.jacobian(encode, values.flatten())
    expected = torch.linalg.slogdet(jacobian).logabsdet
    np.testing.assert_allclose(log_det[0].numpy(), expected, rtol=1e-8)


def test_pytorch_has_as_many_parameters():
    assert _make("pytorch").num_parameters == _make("ours").num_parameters


def test_unknown_contenders_and_options():
    with pytest.raises(ValueError, match="got 'nobody'"):
        contender_class("nobody")
    with pytest.raises(NotAvailable, match="no argument 'no_such_option'"):
        _make("ours", no_such_option=True)


def test_worker_protocol():
    with WorkerProcess(timeout=300) as worker:
        with pytest.raises(WorkerError, match="expected a `build` first"):
            worker.run("train", steps=1)
        with pytest.raises(NotAvailable, match="no_such_option"):
            worker.build(Spec("ours", TINY, {"no_such_option": 1}, threads=1))
        built = worker.build(Spec("glow", TINY, GLOW, threads=1))
        assert built["num_parameters"] > 0
        reply = worker.run("log_prob", steps=2)
        assert math.isfinite(reply["value"]) and reply["seconds"] > 0
        assert reply["peak_mb"] >= built["resident_mb"] > 0
    assert worker._process.returncode == 0


def test_a_spec_survives_json():
    spec = Spec("ours", TINY, {"policy": "mixed_bfloat16"}, threads=3)
    assert Spec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_turns_and_ratio():
    turns = []

    class Runner:
        def __init__(self, name, seconds):
            self.name, self.seconds = name, iter(seconds)

        def run(self, what, steps):
            turns.append((self.name, what, steps))
            return {"seconds": next(self.seconds)}

    # The first step of each turn does not count.
    a, b = [7.0, 1.0, 8.0, 2.0, 7.0, 1.0], [9.0, 2.0, 7.0, 2.0, 8.0, 9.0]
    runners = [Runner("a", a), Runner("b", b)]
    first, second = comparison.interleave(runners, ("sample", "log_prob"), rounds=3, steps=5)
    turn_a, turn_b = ([(*name, 1), (*name, 5)] for name in (("a", "sample"), ("b", "log_prob")))
    assert turns == (turn_a + turn_b) * 3
    seconds = [[turn["seconds"] for turn in each] for each in (first, second)]
    assert comparison.median_ratio(*seconds) == ([2.0, 1.0, 9.0], 2.0)


def test_comparisons_name_rows():
    for each in (*plan.COMPARISONS, *plan.MEMORY_COMPARISONS):
        assert {each.first, each.second} <= set(plan.ROWS)


def test_report():
    side = {
        "step_seconds": [1.0],
        "images_per_second": 64.0,
        "build_seconds": 1.0,
        "first_step_seconds": 2.0,
        "built_mb": 100.0,
        "traced_mb": 200.0,
        "peak_mb": 300.0,
        "num_parameters": 1234,
        "is_finite": True,
    }
    saving = {**side, "peak_mb": 240.0}
    name = {"size": "images64", "what": "train", "first": "memory-saving"}
    measurement = {"first": saving, "second": side, "ratios": [0.8], "ratio": 0.8}
    nowhere = {**measurement, "second": {**side, "is_finite": False}}
    entries = [
        {**name, "second": "memory-plain", "measurement": measurement},
        {**name, "second": "glow", "measurement": nowhere},
        {**name, "second": "memory-saving-2x", "reason": "not available: no such option"},
    ]
    quality = [
        {"contender": "glow", "bits_per_dim": 4.0, "steps": 7, "samples": 9, "finite_samples": 8}
    ]
    machine = {"cpu": "X", "matrix_gflops": {}}
    equal_steps = {
        "size": "small",
        "steps": 5,
        "bits_per_dim": {"float32": 3.0, "mixed_bfloat16": 3.001},
    }
    pipeline = {
        "dataset": "photos",
        "size": "small",
        "pipeline_images_per_second": 2000.0,
        "training_images_per_second": 50.0,
        "ratio": 40.0,
    }
    results = {"machine": machine, "entries": entries, "quality": quality}
    text = report.markdown({**results, "precision": equal_steps, "pipeline": pipeline})
    assert "3.000 in float32, 3.001 in mixed_bfloat16" in text
    assert "2,000 images/s, 40 times" in text
    assert "| glow | 4.000 | 7 |" in text and "| 8 of 9 |" in text
    assert "| memory-saving | memory-plain | 0.70 | 0.40 | 1.25 |" in text
    assert "not available: no such option" in text
    assert "| memory-saving | glow (results not finite) | 64.0" in text
    assert report.sentence(entries[1]).endswith("(results of glow are not finite)")


def test_equal_steps_in_two_precisions(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, [12, 8, 8, 3], dtype=np.uint8)
    np.savez(tmp_path / "images.npz", train_images=images[:8], test_images=images[8:])
    before = keras.config.dtype_policy()
    try:
        outcome = precision.main([f"--data={tmp_path / 'images.npz'}", "--steps=2", "--size=tiny"])
    finally:
        keras.config.set_dtype_policy(before)
    bits = outcome["bits_per_dim"]
    assert outcome["difference"] == bits["mixed_bfloat16"] - bits["float32"]
    assert bits["float32"] == pytest.approx(bits["mixed_bfloat16"], abs=0.1)
    assert bits["float32"] != bits["mixed_bfloat16"]


@pytest.mark.parametrize(
    "name",
    ["benchmarks.sizes", "benchmarks.comparison", "benchmarks.report", "benchmarks.schedule"],
)
def test_docstring_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0
