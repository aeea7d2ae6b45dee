import weakref

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp.bijectors import parts
from tfp_realnvp.bijectors.recomputed_run import Pass, apply_run, runs_of


class _Thirds:
    """A mask of one's own: keeps the first of three channels."""

    parity = 0

    def split(self, x):
        return x[..., :1], x[..., 1:]

    def restrict(self, x):
        return x

    def merge(self, kept, changed):
        return tf.concat([kept, changed], axis=-1)

    def changed_channels(self, channels):
        return channels - 1


def _parts(couplings, **kwargs):
    flow = ft.image_flow((8, 8, 1), num_scales=1, num_couplings=couplings - 1, **kwargs)
    return flow.flow.bijectors


def _names(runs):
    letters = {tfr.AffineCoupling: "c", tfr.BatchNormalization: "b", tfr.ActNorm: "a"}
    return ["".join(letters[type(part)] for part in run) for run in runs]


def _chain(masks, channels, **kwargs):
    bijectors = []
    for mask in masks:
        bijectors += [ft.coupling(mask, channels, **kwargs), tfr.BatchNormalization(**kwargs)]
    return tfr.FlowChain(bijectors, recompute=True, **kwargs)


def test_runs_end_with_their_second_coupling():
    assert _names(runs_of(_parts(4), training=True)) == ["cbc", "bcbc", "b"]
    assert _names(runs_of(_parts(3), training=True)) == ["cbc", "bcb"]
    assert _names(runs_of(_parts(3, normalization=None), training=True)) == ["cc", "c"]
    # Moving statistics and an ActNorm have gradients of the usual kind.
    assert _names(runs_of(_parts(2))) == ["c", "b", "c", "b"]
    assert _names(runs_of(_parts(2, normalization="actnorm"), training=True)) == list("acac")


def test_a_second_coupling_changes_what_the_first_one_kept():
    board, halves = tfr.CheckerboardMask, tfr.ChannelMask
    for masks in ([board(0), board(0)], [board(0), halves(1)], [halves(1), halves(1)]):
        runs = runs_of(_chain(masks, 2).bijectors, training=True)
        assert _names(runs) == ["cb", "cb"]
    one, other = _chain([halves(0), halves(1)], 2).bijectors[::2]
    norm = tfr.BatchNormalization()
    assert _names(runs_of([norm, norm, one, norm, other], training=True)) == ["bbcbc"]
    assert _names(runs_of([one, norm, norm, other], training=True)) == ["cb", "bc"]


def test_parts_that_are_looked_at_come_alone():
    with parts.observe_inverse(lambda *_: None):
        assert _names(runs_of(_parts(2), training=True)) == ["c", "b", "c", "b"]
    validating = [part.copy(validate_args=True) for part in _parts(2)]
    assert _names(runs_of(validating, training=True)) == ["c", "b", "c", "b"]


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(
    ("masks", "channels"),
    [
        ([tfr.CheckerboardMask(i % 2) for i in range(5)], 1),
        ([tfr.ChannelMask(i % 2) for i in range(4)], 2),
        ([tfr.ChannelMask(i) for i in (0, 0, 1)], 4),
        ([tfr.ChannelMask(tf.constant(i)) for i in (0, 1)], 2),
        ([_Thirds(), _Thirds(), tfr.CheckerboardMask(1), tfr.CheckerboardMask(0)], 3),
    ],
)
def test_gradients_are_those_of_the_very_images(masks, channels, traced):
    chain = ft.randomize(_chain(masks, channels, dtype=tf.float64))
    y = ft.normal([3, 4, 6, channels], tf.float64)
    chain.inverse(y, training=True)
    state = [variable for variable in chain.variables if not variable.trainable]
    before = [tf.identity(variable) for variable in state]

    def gradients(flow):
        def run(y):
            with tf.GradientTape() as tape:
                tape.watch(y)
                x, ildj = flow.inverse_and_log_det(y, training=True)
                loss = tf.reduce_sum(x**3) + tf.reduce_sum(ildj**2)
            return tape.gradient(loss, [y, *flow.trainable_variables])

        values = (tf.function(run) if traced else run)(tf.identity(y))
        for variable, value in zip(state, before, strict=True):
            variable.assign(value)
        return np.concatenate([np.ravel(value) for value in values])

    expected = gradients(chain.copy(recompute=False))
    error = np.linalg.norm(gradients(chain) - expected) / np.linalg.norm(expected)
    assert np.abs(expected).max() > 1 and error < 1e-14


def _double(image):
    def gradient(by_result, by_log_det, image, result):
        assert result is not None
        return 2 * by_result, [], image

    repeat = lambda image: 2 * image  # noqa: E731
    log_det = tf.zeros(image.shape[:-3])
    return 2 * image, log_det, Pass(gradient, lambda image: (2 * image, log_det), (), repeat)


def _scale(variable, seen):
    def step(image):
        value = tf.convert_to_tensor(variable)

        def gradient(by_result, by_log_det, image, result):
            seen.append((float(tf.squeeze(image)), result is not None))
            return value * by_result, [tf.reduce_sum(image * by_result)], image

        result, log_det = value * image, tf.zeros(image.shape[:-3])
        return result, log_det, Pass(gradient, lambda x: (variable * x, log_det), [variable])

    return step


def test_what_gradients_of_a_run_get():
    first, second, seen = tf.Variable(3.0), tf.Variable(5.0), []
    steps = [_double, _scale(first, seen), _double, _scale(second, seen)]
    image = tf.fill([1, 1, 1, 1], 7.0)
    with tf.GradientTape() as tape:
        result, log_dets = apply_run(steps, image)
    assert len(log_dets) == 4 and float(tf.squeeze(result)) == 7 * 2 * 3 * 2 * 5
    by_first = tape.gradient(result, first)
    # Of the second coupling's image the half that the first one kept, normalised.
    assert seen == [(7 * 2 * 2, True), (7 * 2, False)]
    assert float(by_first) == 7 * 2 * 2 * 5


def test_a_run_keeps_the_first_image_and_the_last():
    results = []

    def remembered(step):
        def call(image):
            result, log_det, back = step(image)
            results.append(weakref.ref(result))
            return result, log_det, back

        return call

    variable = tf.Variable(3.0)
    steps = [_double, _scale(variable, []), _double, _scale(variable, [])]
    with tf.GradientTape() as tape:
        result, _ = apply_run([remembered(step) for step in steps], tf.ones([1, 1, 1, 1]))
    del result
    assert [each() is not None for each in results] == [False, False, False, True]
    assert tape.watched_variables() == (variable,)
