"""What travels with a value reaches every part, and is made once."""

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb

import tfp_realnvp as tfr
from tfp_realnvp.bijectors.flow_bijector import surround_with

_SHAPE = (4, 4, 2)


class _Spy(tfr.FlowBijector):
    """Doubles images, and keeps the pass that it got."""

    def __init__(self, name="spy"):
        parameters = dict(locals())
        self.passes = []
        super().__init__(parameters=parameters, name=name)

    def _forward_and_log_det(self, x, p):
        self.passes.append(p)
        return 2 * x, self._log_det_of_positions(x, x.shape[-1] * np.log(2.0), p)

    def _inverse_and_log_det(self, y, p):
        self.passes.append(p)
        return y / 2, self._log_det_of_positions(y, -y.shape[-1] * np.log(2.0), p)


class _Wrapped(tfr.FlowBijector):
    """A user's composition, of one part."""

    def __init__(self, part, name="wrapped"):
        parameters = dict(locals())
        self.part = part
        super().__init__(parameters=parameters, name=name)

    def _forward_and_log_det(self, x, p):
        return self.part._forward_and_log_det(x, p)

    def _inverse_and_log_det(self, y, p):
        return self.part._inverse_and_log_det(y, p)


_WRAPS = {
    "itself": lambda part: part,
    "chain": lambda part: tfr.FlowChain([tfr.ActNorm(), part]),
    "recompute": lambda part: tfr.FlowChain(
        [part, ft.coupling(tfr.CheckerboardMask(), 2)], recompute=True
    ),
    "inverted": lambda part: tfr.FlowChain([tfb.Invert(part)]),
    "user": _Wrapped,
    "tfp": lambda part: tfr.FlowChain([tfb.Chain([tfb.Scale(2.0), part])]),
}


@pytest.mark.parametrize("hook", ["forward", "inverse"])
@pytest.mark.parametrize("wrap", _WRAPS)
def test_a_part_gets_what_the_call_and_the_caller_say(wrap, hook):
    spy, seen = _Spy(), []
    bijector = _WRAPS[wrap](spy)
    x = ft.normal([3, *_SHAPE])
    with surround_with(observer=lambda part, *_: seen.append(part.name)):
        result, log_det = getattr(bijector, f"{hook}_and_log_det")(x, training=True)
    assert spy.passes and all(p.training for p in spy.passes)
    assert {p.recompute for p in spy.passes} == {wrap == "recompute"}
    # Outside of the context nobody observes.
    number = len(seen)
    getattr(bijector, f"{hook}_and_log_det")(x)
    assert len(seen) == number and not spy.passes[-1].training
    other = "inverse" if hook == "forward" else "forward"
    back, other_log_det = getattr(bijector, f"{other}_and_log_det")(tf.identity(result))
    if wrap in ("itself", "inverted", "user", "tfp"):
        np.testing.assert_allclose(back, x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(other_log_det, -log_det, rtol=1e-5)


def test_validate_args_of_a_part():
    part = tfr.FlowChain([tfr.ActNorm(validate_args=True, name="checked")])
    for flow in (
        tfr.FlowChain([tfr.FactorOut(part)]),
        tfr.FlowChain([tfb.Invert(part)]),
        tfr.FlowChain([tfr.PixelLogit(alpha=None), part]),
    ):
        for hook in (flow.forward, flow.inverse):
            with pytest.raises(tf.errors.InvalidArgumentError, match="checked: input is not fin"):
                hook(tf.fill([2, *_SHAPE], np.nan))


def test_results_are_not_shared_with_calls_of_other_options():
    bijector = ft.vector_flow(2, num_classes=3, condition_dropout=0.1)
    x, options = ft.normal([5, 2]), {"conditional_input": tf.constant([0, 1, 2, 0, 1])}
    plain = bijector.forward(x, **options)
    with surround_with(guidance=1.0):
        guided = bijector.forward(x, **options)
    assert np.abs(guided - plain).max() > 0.1
    np.testing.assert_array_equal(bijector.forward(x, **options), plain)
