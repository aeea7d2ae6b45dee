import weakref

import flow_testing as ft
import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp.bijectors import parts
from tfp_realnvp.bijectors.recomputed_run import Pass, apply_run, runs_of


def _parts(couplings, **kwargs):
    flow = ft.image_flow((8, 8, 1), num_scales=1, num_couplings=couplings - 1, **kwargs)
    return flow.flow.bijectors


def _names(runs):
    letters = {tfr.AffineCoupling: "c", tfr.BatchNormalization: "b", tfr.ActNorm: "a"}
    return ["".join(letters[type(part)] for part in run) for run in runs]


def test_runs_end_with_their_second_network():
    assert _names(runs_of(_parts(4), training=True)) == ["cbc", "bcbc", "b"]
    assert _names(runs_of(_parts(3), training=True)) == ["cbc", "bcb"]
    assert _names(runs_of(_parts(3, normalization=None), training=True)) == ["cc", "c"]
    # Moving statistics and an ActNorm have gradients of the usual kind.
    assert _names(runs_of(_parts(2))) == ["c", "b", "c", "b"]
    assert _names(runs_of(_parts(2, normalization="actnorm"), training=True)) == list("acac")


def test_parts_that_are_looked_at_come_alone():
    with parts.observe_inverse(lambda *_: None):
        assert _names(runs_of(_parts(2), training=True)) == ["c", "b", "c", "b"]
    validating = [part.copy(validate_args=True) for part in _parts(2)]
    assert _names(runs_of(validating, training=True)) == ["c", "b", "c", "b"]


def _double(image):
    def gradient(by_result, by_log_det, image, result):
        return 2 * by_result, [], result / 2

    repeat = lambda image: 2 * image  # noqa: E731
    log_det = tf.zeros(image.shape[:-3])
    return 2 * image, log_det, Pass(gradient, lambda image: (2 * image, log_det), (), repeat)


def _scale(variable, seen):
    def step(image):
        value = tf.convert_to_tensor(variable)

        def gradient(by_result, by_log_det, image, result):
            seen.append("result" if image is None else "image")
            image = result / value if image is None else image
            return value * by_result, [tf.reduce_sum(image * by_result)], image

        result, log_det = value * image, tf.zeros(image.shape[:-3])
        return result, log_det, Pass(gradient, lambda x: (variable * x, log_det), [variable])

    return step


@pytest.mark.parametrize("traced", [False, True])
def test_gradient_of_a_run(traced):
    first, second, seen = tf.Variable(3.0), tf.Variable(5.0), []
    steps = [_double, _scale(first, seen), _double, _scale(second, seen), _double]

    def gradients(image):
        with tf.GradientTape() as tape:
            tape.watch(image)
            result, log_dets = apply_run(steps, image)
            assert len(log_dets) == 5
            loss = tf.reduce_sum(result)
        return result, tape.gradient(loss, [image, first, second])

    run = tf.function(gradients) if traced else gradients
    result, (by_image, by_first, by_second) = run(tf.fill([1, 1, 1, 1], 7.0))
    assert result.numpy().item() == 8 * 3 * 5 * 7
    assert by_image.numpy().item() == 8 * 3 * 5
    assert (float(by_first), float(by_second)) == (8 * 5 * 7, 8 * 3 * 7)
    assert seen == ["result", "image"]


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
    assert [each() is not None for each in results] == [False, False, False, True]
    assert float(tape.gradient(result, variable)) == 24
