"""Eight threads on one distribution: every result is the one of a single thread."""

import threading

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from hardening.effort import share

import tfp_realnvp as tfr

pytestmark = pytest.mark.full

SHAPE = (4, 4, 1)
NUM_THREADS = 8


def calls(flow):
    """Returns functions of mixed kinds that give the same whenever, and wherever, they run."""
    # One tensor for all threads: they meet at the same entries of the cache.
    images = [ft.pixels([2, *SHAPE], seed=seed) for seed in range(4)]
    latents = ft.normal([2, *SHAPE])
    compiled = tf.function(flow.log_prob)

    def log_prob_of_sample():
        sample = flow.sample(2, seed=(3, 5))
        return tf.concat([tf.reshape(sample, [-1]), flow.log_prob(sample)], axis=0)

    def encode_and_decode():
        latents, ildj = flow.bijector.inverse_and_log_det(images[2])
        again, fldj = flow.bijector.forward_and_log_det(latents)
        return tf.stack([tf.reduce_sum(again, [1, 2, 3]), ildj, fldj])

    return [
        *(lambda x=x: flow.log_prob(x) for x in images),
        *(lambda seed=seed: flow.sample(2, seed=(0, seed)) for seed in range(4)),
        log_prob_of_sample,
        encode_and_decode,
        lambda: flow.bijector.forward_log_det_jacobian(latents),
        lambda: compiled(images[1]),
        lambda: compiled(images[1][:1]),
    ]


def assert_same_in_threads(functions, expected, rounds, **tolerances):
    """Checks what each function returns in threads that call all of them, each in its own order."""
    wrong, errors = [], []
    start = threading.Barrier(NUM_THREADS)

    def work(number):
        rng = np.random.default_rng(number)
        start.wait()
        try:
            for _ in range(rounds):
                for index in rng.permutation(len(functions)):
                    result = functions[index]().numpy()
                    if not np.allclose(result, expected[index], **tolerances):
                        wrong.append((number, index))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and not wrong


# A graph computes repeated passes of the networks of the package only.
@pytest.mark.parametrize("network_fn", [ft.convolution, ft.shallow_conv])
def test_threads(network_fn):
    flow = ft.flow_distribution(SHAPE, num_couplings=1, network_fn=network_fn)
    expected = [call().numpy() for call in calls(flow)]
    # Others, so that the functions are traced by several threads at once.
    assert_same_in_threads(calls(flow), expected, rounds=share(1, 20), rtol=1e-5, atol=1e-4)


def test_tapes():
    # Networks without batch normalization: on a CPU, TensorFlow's FusedBatchNormGradV3 sometimes
    # gives a wrong gradient of the offset if several threads call it and it has several itself.
    options = {"num_scales": 1, "num_couplings": 1, "network_fn": ft.shallow_conv}
    flow = ft.flow_distribution(SHAPE, **options)
    variables = flow.trainable_variables

    def gradient(value):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(flow.log_prob(value))
        return tf.concat([tf.reshape(g, [-1]) for g in tape.gradient(loss, variables)], axis=0)

    images = [ft.pixels([2, *SHAPE], seed=seed) for seed in range(2)]
    expected = [gradient(tf.identity(x)).numpy() for x in images]
    functions = [lambda x=x: gradient(x) for x in images]
    assert_same_in_threads(functions, expected, rounds=share(4, 100), rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("only_log_prob")
def test_first_calls_of_exports(tmp_path):
    flow = ft.flow_distribution(SHAPE, num_blocks=2, num_filters=32)
    tfr.export_saved_model(flow, tmp_path / "1", image_shape=SHAPE)
    images = [ft.pixels([1 + seed % 3, *SHAPE], seed=seed) for seed in range(4)]

    def calls_of_export():
        log_prob = tf.saved_model.load(tmp_path / "1").signatures["log_prob"]
        return [lambda x=x: log_prob(x)["log_prob"] for x in images]

    expected = [call().numpy() for call in calls_of_export()]
    for _ in range(share(2, 50)):
        assert_same_in_threads(calls_of_export(), expected, rounds=5, rtol=1e-5, atol=1e-3)
