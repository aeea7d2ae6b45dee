import dataclasses
import math

import flow_testing as ft
import numpy as np
import pytest

import tfp_realnvp as tfr
from benchmarks.contenders import contender_class
from benchmarks.sizes import SIZES

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]

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


def test_pytorch_penalizes_as_many_parameters():
    torch, plain = _make("pytorch"), _make("plain_tfp")
    assert sum(p.numel() for p in torch.scales) == sum(np.prod(v.shape) for v in plain.scales)


def _weights_of_both(couplings, norms, steps):
    """Yields a variable of ours, an index into it or `None`, and the tensor of PyTorch.

    Kernels are [..., C, K] with ours and [K, C, h, w] with PyTorch.
    """
    for coupling, norm, step in zip(couplings, norms, steps, strict=True):
        ours, theirs = coupling.network, step.network
        yield coupling.scale, None, step.scale
        yield norm.moving.mean, None, step.norm.mean
        yield norm.moving.variance, None, step.norm.variance
        yield ours.input_offset, None, theirs.input_norm.bias
        yield ours.input_mean, None, theirs.input_norm.mean
        yield ours.input_variance, None, theirs.input_norm.variance
        yield ours.input_kernel, None, theirs.input_conv.direction
        yield ours.input_scale, None, theirs.input_conv.scale
        yield ours.input_bias, None, theirs.input_conv.bias
        torch_norms = [norm for block in theirs.blocks for norm in (block.norm1, block.norm2)]
        for i, torch_norm in enumerate([*torch_norms, theirs.output_norm]):
            yield ours.offsets, i, torch_norm.bias
            yield ours.moving_means, i, torch_norm.mean
            yield ours.moving_variances, i, torch_norm.variance
        for i, conv in enumerate(conv for b in theirs.blocks for conv in (b.conv1, b.conv2)):
            yield ours.block_kernels, i, conv.direction
            yield ours.block_scales, i, conv.scale
            if conv.bias is not None:
                yield ours.block_biases, i // 2, conv.bias
        for i, skip in enumerate([theirs.input_skip, *(block.skip for block in theirs.blocks)]):
            yield ours.skip_kernels, i, skip.direction
            yield ours.skip_scales, i, skip.scale
            yield ours.skip_biases, i, skip.bias
        yield ours.output_kernel, None, theirs.output_conv.direction
        yield ours.output_scales, None, theirs.output_conv.scale
        yield ours.output_bias, None, theirs.output_conv.bias


def test_pytorch_with_our_weights():
    torch = pytest.importorskip("torch")
    ours, theirs = _make("ours"), _make("pytorch")
    parts = ours.distribution.submodules
    couplings = [part for part in parts if isinstance(part, tfr.AffineCoupling)]
    norms = [part for part in parts if isinstance(part, tfr.BatchNormalization)]
    steps = [module for module in theirs.flow.modules() if type(module).__name__ == "_Step"]
    weights = list(_weights_of_both(couplings, norms, steps))
    num_weights = sum(np.prod(v.shape) for v in ft.randomize(ours.distribution).variables)
    # All but the numbers of updates.
    assert sum(tensor.numel() for *_, tensor in weights) == num_weights - len(norms)

    values = ours.images + np.float32(0.5)
    with torch.no_grad():
        for variable, index, tensor in weights:
            value = np.asarray(variable if index is None else variable[index])
            if tensor.ndim == 4:
                value = value.reshape(*tensor.shape[2:], *value.shape[-2:])
                value = np.transpose(value, [3, 2, 0, 1])
            tensor.copy_(torch.from_numpy(value.copy()))
    np.testing.assert_allclose(theirs.log_prob(values), ours.log_prob(values), rtol=1e-4)
