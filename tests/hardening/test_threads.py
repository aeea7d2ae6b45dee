"""Eight threads on one distribution: every result is the one of a single thread."""

import threading

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf
from hardening.effort import share

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


@pytest.mark.parametrize("name", ["one_scale", "two_scales"])
def test_threads(name):
    flow = ft.flow_distribution(
        SHAPE, num_scales=1 if name == "one_scale" else 2, num_blocks=0, num_couplings=1
    )
    expected = [call().numpy() for call in calls(flow)]
    # Others, so that the functions are traced by several threads at once.
    functions = calls(flow)
    wrong, errors = [], []
    start = threading.Barrier(NUM_THREADS)

    def work(number):
        order = np.random.default_rng(number).integers(len(functions), size=share(8, 200))
        start.wait()
        try:
            for index in order:
                result = functions[index]().numpy()
                if not np.allclose(result, expected[index], rtol=1e-5, atol=1e-4):
                    wrong.append((number, index))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=[number]) for number in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and not wrong
