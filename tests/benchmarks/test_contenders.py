import dataclasses
import math

import numpy as np
import pytest

import tfp_realnvp as tfr
from benchmarks.contenders import contender_class
from benchmarks.sizes import SIZES

TINY = SIZES["tiny"]
GLOW = {"num_blocks": 2, "num_steps": 1, "num_hidden": 4}


def _make(name, size=TINY, **options):
    if name == "pytorch":
        # Test processes that run side by side share the cores.
        pytest.importorskip("torch").set_num_threads(1)
    return contender_class(name)(size, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [("ours", {}), ("plain_tfp", {}), ("glow", GLOW), ("pytorch", {})],
)
def test_operations(name, options):
    contender = _make(name, dataclasses.replace(TINY, num_scales=1, num_blocks=0), **options)
    values = contender.images + np.float32(0.5)
    log_prob, samples = contender.log_prob(values), contender.sample()
    assert log_prob.shape == (TINY.batch_size,)
    assert samples.shape == values.shape and np.isfinite(samples).all()
    assert contender.run("log_prob", steps=2) == pytest.approx(log_prob.mean())
    assert math.isfinite(contender.train_step(contender.images))
    contender.run("train", steps=10)
    assert contender.log_prob(values).mean() > log_prob.mean()


def test_the_plain_model_is_the_same_function():
    # The networks are of the same class.
    size = dataclasses.replace(TINY, num_blocks=0)
    ours, plain = _make("ours", size), _make("plain_tfp", size)
    couplings = [m for m in ours.distribution.submodules if isinstance(m, tfr.AffineCoupling)]
    # Both from the data to the latents.
    for mine, theirs in zip(couplings, plain.couplings, strict=True):
        theirs.network.set_weights(mine.network.get_weights())
    values = ours.images + np.float32(0.5)
    np.testing.assert_allclose(ours.log_prob(values), plain.log_prob(values), rtol=1e-5)
    assert ours.num_parameters == plain.num_parameters


def test_pytorch_has_as_many_parameters_and_penalizes_as_many():
    torch, plain = _make("pytorch"), _make("plain_tfp")
    assert torch.num_parameters == plain.num_parameters
    assert sum(p.numel() for p in torch.scales) == sum(np.prod(v.shape) for v in plain.scales)


def test_pytorch_is_a_bijection_with_its_log_det():
    torch = pytest.importorskip("torch")
    contender = _make("pytorch")
    contender.train(steps=2)
    flow = contender.flow.eval().double()
    values = torch.from_numpy(contender.images[:1] + 0.5).permute(0, 3, 1, 2)

    def encode(flat):
        return flow.inverse(flat.reshape(values.shape))[0].flatten()

    with torch.no_grad():
        latents, log_det = flow.inverse(values)
        np.testing.assert_allclose(flow(latents), values, atol=1e-8)
    jacobian = torch.autograd.functional.jacobian(encode, values.flatten())
    expected = torch.linalg.slogdet(jacobian).logabsdet
    np.testing.assert_allclose(log_det[0].numpy(), expected, rtol=1e-8)
