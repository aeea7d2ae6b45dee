"""Small flows, models and tables, and what they answer, here or in a new process.

The other process gets arrays, files and pickles alone, and loads them into new objects for each
question. What it keeps from one question to the next, such as the kernels of TensorFlow, goes with
it after `num_questions`. It is forked from a process that has imported the packages, and has run
nothing.
"""

import functools
import pathlib
import pickle
import tempfile
import traceback

import flow_testing as ft
import forked
import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

_VECTORS = {"num_couplings": 2, "num_blocks": 0, "num_filters": 4}
_IMAGES = {"num_scales": 1, "num_couplings": 1, "num_blocks": 0, "num_filters": 4}
_IMAGES["normalization"] = "actnorm"
# Bijectors between latents and events, some of which create variables at their first call.
BIJECTORS = {
    "actnorm": lambda: tfr.FlowChain([tfr.ActNorm(event_ndims=1)]),
    "batch": lambda: tfr.FlowChain(
        [tfr.BatchNormalization(event_ndims=1), tfr.ActNorm(event_ndims=1)]
    ),
    "vectors": lambda: tfr.RealNVPVector(2, **_VECTORS),
    "splines": lambda: tfr.RealNVPVector(
        2, transformer="rational_quadratic_spline", normalization="batch", **_VECTORS
    ),
    "labels": lambda: tfr.RealNVPVector(2, num_classes=3, **_VECTORS),
    "images": lambda: tfr.RealNVPImage((4, 4, 1), **_IMAGES),
    "recompute": lambda: tfr.RealNVPVector(2, recompute=True, **_VECTORS),
}
SEED = 5
NUM_SAMPLES = 3


def new_flow(kind):
    """Returns a flow with new weights, on a trainable base."""
    bijector = BIJECTORS[kind]()
    mean, stddev = tf.Variable(0.1, name="mean"), tf.constant(1.0)
    base = tfd.Sample(tfd.Normal(mean, stddev), [2] if bijector.event_ndims == 1 else [4, 4, 1])
    return tfd.TransformedDistribution(base, bijector)


@functools.cache
def events_of(kind):
    """Returns the events that are scored, always the same tensor, and their conditions."""
    rng = np.random.default_rng(1)
    if kind == "images":
        return tf.constant(rng.integers(0, 256, [NUM_SAMPLES, 4, 4, 1]) + 0.5, tf.float32), {}
    condition = {"conditional_input": tf.constant([2, 0, 1])} if kind == "labels" else {}
    return tf.constant(2 * rng.normal(size=[NUM_SAMPLES, 2]) + 1, tf.float32), condition


def training_data(kind, seed):
    """Returns 16 events for `fit`, and their conditions or `None`."""
    rng = np.random.default_rng(seed)
    if kind == "images":
        return rng.integers(0, 256, [16, 4, 4, 1], dtype=np.uint8), None
    labels = np.arange(16) % 3
    events = (2 * rng.normal(size=[16, 2]) + [1, 10]).astype(np.float32)
    return events, labels if kind == "labels" else None


def arrays_of(flow):
    return [variable.numpy() for variable in flow.variables]


def answers_of_flow(flow, kind):
    """Returns what a flow answers, eagerly, by name."""
    x, options = events_of(kind)
    of_distribution = {"bijector_kwargs": options}
    latents = flow.bijector.inverse(x, **options)
    with tf.GradientTape() as tape:
        log_prob = flow.log_prob(x, **of_distribution)
        total = tf.reduce_sum(log_prob)
    gradients = tape.gradient(total, flow.variables)
    return {
        "log_prob": log_prob,
        "log_prob of a new tensor": flow.log_prob(tf.identity(x), **of_distribution),
        "latents": latents,
        "decoded": flow.bijector.forward(tf.identity(latents), **options),
        "sample": flow.sample(NUM_SAMPLES, seed=[SEED, 0], **of_distribution),
        **{
            f"gradient {i}": None if gradient is None else tf.convert_to_tensor(gradient)
            for i, gradient in enumerate(gradients)
        },
    }


def answers_of_model(model, kind):
    events, condition = training_data(kind, seed=0)
    data = events if condition is None else (events, condition)
    return {
        "score": tfr.log_prob(model, data),
        "predicted": model.predict(data, verbose=0),
    }


def answers_of_export(served, kind):
    x, options = events_of(kind)
    name = "images" if kind == "images" else "x"
    latents = served.encode(x, **options)["latents"]
    samples = served.sample(num_samples=NUM_SAMPLES, seed=SEED, temperature=1.0, **options)
    return {
        "log_prob": served.log_prob(x, **options)["log_prob"],
        "latents": latents,
        "decoded": served.decode(latents, **options)[name],
        "sample": samples[name],
    }


def rows_of(seed, number=300):
    """Returns rows of an x, and of two y on a curve, of which flows learn more than mixtures."""
    rng = np.random.default_rng(seed)
    y, noise, x = rng.normal(size=[3, number])
    return np.stack([x, y, np.sin(2 * y) + 0.5 * y**2 + 0.05 * noise], axis=1)


def answers_of_table(estimator):
    x, y = np.split(rows_of(99, number=4), [1], axis=1)
    if isinstance(estimator, tfr.FlowDensity):
        return {
            "score": estimator.score_samples(y),
            "sample": estimator.sample(3, random_state=SEED),
        }
    return {
        "score": estimator.score_samples(x, y),
        "predicted": estimator.predict(x),
        "sample": estimator.sample(x, 3, random_state=SEED),
    }


def train_by_loop(flow, kind, step):
    """Makes two steps of gradient descent of a user's own."""
    for seed in range(2):
        events, condition = training_data(kind, seed)
        step(flow, tf.cast(events, tf.float32), condition)


def step(flow, events, condition):
    options = {} if condition is None else {"conditional_input": condition}
    variables = flow.trainable_variables
    with tf.GradientTape() as tape:
        log_prob = flow.log_prob(events, bijector_kwargs={"training": True, **options})
        loss = -tf.reduce_mean(log_prob)
    gradients = tape.gradient(loss, variables)
    gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
    for variable, gradient in zip(variables, gradients, strict=True):
        variable.assign_sub(0.01 * gradient)


class Rates(keras.callbacks.Callback):
    """Notes the learning rate of each batch."""

    def __init__(self):
        super().__init__()
        self.rates = []

    def on_train_batch_begin(self, batch, logs=None):
        self.rates.append(float(self.model.optimizer.learning_rate))


def fit(model, kind, seed, as_dataset, budget, callbacks=()):
    """Makes four steps, or three with a budget; returns their learning rates."""
    rates = Rates()
    budgets = [tfr.LearningRateBudget(1e-2, steps=3)] if budget else []
    data = tuple(part for part in training_data(kind, seed) if part is not None)
    options = {"batch_size": 8}
    if as_dataset:
        data, options = (tf.data.Dataset.from_tensor_slices(data).batch(8),), {}
    callbacks = [*budgets, rates, *callbacks]
    model.fit(*data, epochs=2, shuffle=False, verbose=0, callbacks=callbacks, **options)
    return rates.rates


# Questions.


def _loaded_flow(kind, arrays, flags):
    flow = new_flow(kind)
    if len(arrays) != len(flow.variables):
        x, options = events_of(kind)
        flow.log_prob(x, bijector_kwargs=options)
    ft.assign(flow.variables, arrays)
    for layer, flag in zip(layers_of(flow), flags, strict=True):
        layer.trainable = flag
    return flow


def layers_of(flow):
    """Returns the Keras layers of a flow."""
    parts = [flow.bijector, *flow.bijector.submodules]
    return list(dict.fromkeys(layer for b in parts for layer in getattr(b, "layers", ())))


def ask_flow(kind, arrays, flags):
    return answers_of_flow(_loaded_flow(kind, arrays, flags), kind)


def ask_model(kind, arrays, flags):
    return answers_of_model(tfr.FlowModel(_loaded_flow(kind, arrays, flags)), kind)


def ask_loop(kind, arrays, flags, in_graph):
    flow = _loaded_flow(kind, arrays, flags)
    train_by_loop(flow, kind, tf.function(step) if in_graph else step)
    return arrays_of(flow)


def ask_table(pickled):
    return answers_of_table(pickle.loads(pickled))


def ask_fit(kind, archive, *arguments):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.keras"
        path.write_bytes(archive)
        model = keras.models.load_model(path)
    return {"rates": fit(model, kind, *arguments), "weights": arrays_of(model.distribution)}


class NewProcess:
    """Answers questions in a process that is replaced by a new one after `num_questions`."""

    def __init__(self, num_questions):
        self._context = forked.context()
        self._num_questions, self._left, self._process = num_questions, 0, None
        self._known = {}

    def ask(self, function, *arguments):
        """Returns `function(*arguments)` of the process, with arrays in place of tensors."""
        question = pickle.dumps((function.__name__, arguments))
        if question not in self._known:
            if not self._left:
                self._restart()
            self._left -= 1
            self._connection.send_bytes(question)
            answer = self._connection.recv()
            assert not isinstance(answer, str), answer
            self._known[question] = answer
        return self._known[question]

    def _restart(self):
        self.close()
        self._connection, other = self._context.Pipe()
        threading = tf.config.threading
        threads = (
            threading.get_intra_op_parallelism_threads(),
            threading.get_inter_op_parallelism_threads(),
        )
        self._process = self._context.Process(target=_serve, args=(other, *threads), daemon=True)
        self._process.start()
        other.close()
        self._left = self._num_questions

    def close(self):
        if self._process is not None:
            self._connection.close()
            self._process.join()
            self._process = None


def _serve(connection, intra_op_threads, inter_op_threads):
    tf.config.threading.set_intra_op_parallelism_threads(intra_op_threads)
    tf.config.threading.set_inter_op_parallelism_threads(inter_op_threads)
    while True:
        try:
            name, arguments = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        try:
            connection.send(as_arrays(globals()[name](*arguments)))
        except Exception:
            connection.send(traceback.format_exc())


def as_arrays(answers):
    return tf.nest.map_structure(lambda x: x.numpy() if tf.is_tensor(x) else x, answers)
