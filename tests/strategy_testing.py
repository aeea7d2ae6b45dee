"""The same training on one device, on two replicas of a process, and in two worker processes."""

import json
import pathlib
import socket

import flow_testing as ft
import forked
import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

SHAPE = (4, 4, 1)
STEPS = 20


def make_model(
    strategy=None,
    optimizer=lambda: None,
    dequantize=True,
    global_statistics=True,
    kind=tfr.FlowModel,
    run_eagerly=False,
    **options,
):
    """Returns a compiled model of random weights, with batch normalization everywhere."""
    with (strategy or tf.distribute.get_strategy()).scope():
        keras.utils.set_random_seed(0)
        sizes = {} if "network_fn" in options else {"num_blocks": 0, "num_filters": 3}
        options = {"num_scales": 1, "num_couplings": 1, **sizes, **options}
        flow = ft.randomize(tfr.RealNVPImage(SHAPE, **options))
        base = ft.standard_normal(SHAPE, flow.dtype)
        distribution = tfp.distributions.TransformedDistribution(base, flow)
        model = kind(distribution, dequantize=dequantize)
        execution = {"global_statistics": global_statistics, "run_eagerly": run_eagerly}
        model.compile(optimizer(), **execution)
    return model


class OwnStep(tfr.FlowModel):
    """Makes the steps of a `FlowModel` by its public methods, on any number of replicas."""

    def train_step(self, data):
        batch = self.unpack_batch(data)
        with tf.GradientTape() as tape:
            log_prob = self.training_log_prob(batch)
            weights = tf.ones_like(log_prob) if batch.weights is None else batch.weights
            mean = tf.reduce_sum(weights * log_prob) / tf.reduce_sum(weights)
            number = self.distribute_strategy.num_replicas_in_sync
            loss = (self.penalty() - mean) / number
        gradients = tape.gradient(loss, [v.value for v in self.trainable_variables])
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss * number}


def adam():
    # The gradient of a bias before batch normalization is rounding alone, of which Adam with its
    # usual epsilon makes whole steps. They depend on the order of sums.
    return keras.optimizers.Adam(1e-3, epsilon=1e-3)


def train(strategy, folder):
    """Returns what 20 steps, or 4 epochs, come to, with validation and checkpoints."""
    model, images = make_model(strategy, adam), ft.grey_levels(40)
    # By the clock, which no two workers share, but far from its end.
    budget = tfr.LearningRateBudget(1e-3, seconds=1e6, warmup_steps=1)
    checkpoint = tfr.TrainingCheckpoint(folder, model, budget=budget)
    history = model.fit(
        images,
        batch_size=8,
        epochs=4,
        shuffle=False,
        # A last batch of a single image, which leaves a replica without any.
        validation_data=(images[:9], None),
        verbose=0,
        callbacks=[budget, checkpoint],
    ).history
    del history["minutes_left"]  # of each worker's own clock
    return {
        **history,
        "steps": int(model.optimizer.iterations.numpy()),
        "evaluate": model.evaluate(images[:21], batch_size=8, verbose=0),
        "predict": model.predict(images[:9], batch_size=8, verbose=0).tolist(),
        "weights": [float(tf.reduce_sum(v)) for v in model.distribution.variables],
    }


def assert_same(actual, expected):
    """Asserts that two results of `train` are those of the same steps."""
    assert actual["steps"] == expected["steps"]
    for name in ("loss", "bits_per_dim", "val_loss", "val_bits_per_dim", "evaluate", "predict"):
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-4, err_msg=name)


def start_workers(script, arguments, folder):
    """Starts two worker processes on free ports of this machine; their output goes to `folder`."""
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("localhost", 0))
    addresses = [f"localhost:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    processes = []
    for index in range(2):
        task = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        # One core for each.
        environment = {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "2"}
        code = forked.script(script, *arguments, TF_CONFIG=json.dumps(task), **environment)
        processes.append(forked.start(code, folder, pathlib.Path(folder) / f"worker{index}.txt"))
    return processes


def finish_workers(processes, folder):
    """Waits for workers that are to succeed."""
    try:
        for index, process in enumerate(processes):
            process.join(120)
            log = pathlib.Path(folder) / f"worker{index}.txt"
            assert process.exitcode == 0, log.read_text()[-4000:]
    finally:
        for process in processes:
            process.kill()
            process.join()
