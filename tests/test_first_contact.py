"""What new users type by habit, and what comes: a result, or a sentence with the call that works.

Each snippet runs in an empty folder, in a new process, which is forked from one that has imported
the packages and has run nothing.
"""

import multiprocessing
import re

import pytest

pytestmark = pytest.mark.full

_BEFORE = """
import os, sys, time

os.chdir({folder!r})
for stream in (1, 2):
    os.dup2(os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.model_selection import cross_val_score

import tfp_realnvp as tfr

tfd = tfp.distributions
rng = np.random.default_rng(0)
x = rng.integers(0, 256, [12, 4, 4, 1], np.uint8)
labels = np.arange(12) % 3
rows = pd.DataFrame(dict(wind=360 * rng.random(200), rain=rng.exponential(size=200)))
rows["sky"] = rng.choice(["clear", "gray"], 200)
few = dict(num_flows=2, num_couplings=1, num_filters=4, max_steps=20, random_state=0)


def flow_of(bijector, *shape):
    return tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0.0, 1.0), shape), bijector)


def model_of(size, **options):
    options = dict(num_scales=1, num_couplings=1, num_filters=4, **options)
    bijector = tfr.RealNVPImage.compact([size, size, 1], **options)
    model = tfr.FlowModel(flow_of(bijector, size, size, 1))
    model.compile()
    return model


def batches(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays if arrays[1:] else arrays[0]).batch(6)


"""
# Blocks of a snippet and of a regular expression of its output, which ends with an error if the
# expression names one.
_SNIPPETS = r"""
tfr.RealNVPVector(16, hidden_layers=[64, 64])
# TypeError: RealNVPVector got .*'hidden_layers'.* It takes .*num_couplings, .*num_filters

tfr.RealNVPImage((8, 8, 1), num_coupling=2)
# TypeError: RealNVPImage got .*'num_coupling', did you mean 'num_couplings'

tfr.RealNVPImage.compact((8, 8, 1), filters=32)
# TypeError: RealNVPImage.compact got .*'filters', did you mean 'num_filters'

tfr.FlowModel(flow_of(tfr.RealNVPVector(2), 2), dequantization=False)
# TypeError: FlowModel got .*'dequantization', did you mean 'dequantize'

tfr.FlowDensity(n_components=3)
# TypeError: FlowDensity got .*'n_components'.* It takes num_flows,

print(model_of(4).sample(16).shape, model_of(4).log_prob(x).shape)
# ^\(16, 4, 4, 1\) \(12,\)$

model_of(32).fit(batches(np.zeros([12, 28, 28, 1], np.uint8)))
# ValueError: .*expected images \[batch, 32, 32, 1\], got shape \(\w+, 28, 28, 1\)

model_of(4, num_classes=3).fit(batches(x, keras.utils.to_categorical(labels)))
# ValueError: .*integer labels in \[0, 3\), got .*`labels.argmax\(-1\)`

model_of(4, num_values=17).fit(batches(x))
# ValueError: .*expected gray levels 0 to 16, .*got values from \d+ to 2\d\d\.

model_of(4).fit(batches(x).map(keras.layers.Rescaling(1.0 / 255)))
# ValueError: .*Leave out `Rescaling\(1 / 255\)`

data = batches(x.astype("float32")).map(keras.layers.RandomTranslation(0.3, 0.3))
print(tfr.plots.save_history("history.png", model_of(4).fit(data, epochs=2, verbose=0)))
# (?s)pixel values are not whole.*`tf.round`.*\nhistory.png$

tfr.plots.save_curves("curve.png", model_of(4).fit(x, verbose=0))
# TypeError: .*save_history

flow = model_of(4, num_classes=3).distribution
print(tfr.latents.encode(tfr.condition(flow, labels), x + 0.5).shape)
# ^\(12, 4, 4, 1\)$

flow_of(tfr.RealNVPVector(16), 16).log_prob(tf.zeros([3, 15]))
# ValueError: .*got shape \(3, 15\)

time.perf_counter = lambda clock=time.perf_counter: 100 * clock()
tfr.export_saved_model(model_of(4).distribution, "served", image_shape=(8, 8, 1))
print(tf.saved_model.load("served").sample_uint8(2, 0, 1.0)["images"].shape)
# (?s)export_saved_model, \d+ s: tracing .*wrote served\..*\(2, 8, 8, 1\)

flow = model_of(4).distribution
tf.function(lambda: tfr.export_saved_model(flow, "served"), autograph=False)()
# RuntimeError: export_saved_model: expected a call in eager mode

time.perf_counter = lambda clock=time.perf_counter: 10_000 * clock()
gaps = rows.mask(rng.random(rows.shape) < 0.1)
density = tfr.FlowDensity(bounds=dict(rain=(0, None)), periods=dict(wind=360), **few).fit(gaps)
print("fitted", np.isfinite(density.score_samples(gaps)).all())
# (?s)flow 1 of 2, step \d+ of 20, at most \d+ s left: .*\d+ s: [\d,]+ of 200 rows.*fitted True

rows.loc[150, "wind"] = None
print(cross_val_score(tfr.FlowRegressor(**few), rows[["wind", "sky"]], rows["rain"], cv=2) < 9)
# (?s)given the other cells: wind\..*\[ True  True\]

rows = rows[:60].assign(dry=[True, None, False] * 20, place=[(1, 2), (3, 4)] * 30)
rows["sky"] = rows["sky"].astype("string")
print(sorted({*tfr.FlowDensity(**few).fit(rows).sample(100)["place"]}))
# \[\(1, 2\), \(3, 4\)\]$

table = np.array([["1.0", "a"], ["2.5", "b"], ["0.5", "a"]] * 9)
print(sorted({*tfr.FlowDensity(categorical_features=[1], **few).fit(table).sample(50)[:, 1]}))
# \['a', 'b'\]$

huge = 1e100 * rows.loc[:60, ["wind", "rain"]]
print(tfr.FlowDensity(**few).fit(huge).score(huge) < -460)
# ^True$
"""


@pytest.mark.parametrize("block", _SNIPPETS.strip().split("\n\n"), ids=lambda block: block[:40])
def test_snippet(block, tmp_path):
    snippet, expected = block.split("\n# ")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tfp_realnvp.tables"])
    code = _BEFORE.format(folder=str(tmp_path)) + snippet
    process = context.Process(target=exec, args=(code, {"__name__": "__main__"}))
    process.start()
    process.join()
    output = (tmp_path / "output").read_text()
    assert re.search(expected, output, re.MULTILINE), output
    assert bool(process.exitcode) == ("Error: " in expected), output
    # No dump of a graph, no internal error before that of the package, and one line.
    assert len(output) < 8_000 and "During handling" not in output, output
    assert not process.exitcode or re.match(r"\w+Error: ", output.splitlines()[-1]), output
