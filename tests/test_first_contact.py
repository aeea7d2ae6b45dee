"""What new users type by habit, and what comes: a result, or a sentence with the call that works.

Each snippet runs in an empty folder, in a new process.
"""

import re

import forked
import pytest

pytestmark = pytest.mark.full

_BEFORE = """
import itertools
import time

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.model_selection import cross_val_score

import tfp_realnvp as tfr

rng = np.random.default_rng(0)
rows = pd.DataFrame(dict(wind=360 * rng.random(200), rain=rng.exponential(size=200)))
rows["sky"] = rng.choice(["clear", "gray"], 200)
few = dict(num_flows=2, num_couplings=1, num_filters=4, max_steps=20, random_state=0)


"""
# Blocks of a snippet and of a regular expression of its output, which ends with an error if the
# expression names one.
_SNIPPETS = r"""
tfr.FlowDensity(n_components=3)
# TypeError: FlowDensity got .*'n_components'.* It takes num_flows,

images = tf.data.Dataset.from_tensors(rng.integers(0, 256, [12, 4, 4, 1], np.uint8))
bijector = tfr.RealNVPImage([4, 4, 1], num_couplings=1, num_blocks=0, num_filters=4)
base = tfp.distributions.Sample(tfp.distributions.Normal(0.0, 1.0), [4, 4, 1])
model = tfr.FlowModel(tfp.distributions.TransformedDistribution(base, bijector))
model.compile()
model.fit(images.map(keras.layers.Rescaling(1.0 / 255)))
# ValueError: .*Leave out `Rescaling\(1 / 255\)`

calls = itertools.count()
time.perf_counter = lambda: 60.0 * next(calls)  # one minute from each call to the next
gaps = rows.mask(rng.random(rows.shape) < 0.1)
longer = few | dict(max_steps=1_000)
density = tfr.FlowDensity(bounds=dict(rain=(0, None)), periods=dict(wind=360), **longer).fit(gaps)
print("fitted", np.isfinite(density.score_samples(gaps)).all())
# (?s)flow 1 of 2, step \d+ of 1,000, at most \d+ s left: .*\d+ s: [\d,]+ of 200 rows.*fitted True

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
    exit_code, output = forked.run(_BEFORE + snippet, tmp_path)
    assert re.search(expected, output, re.MULTILINE), output
    assert bool(exit_code) == ("Error: " in expected), output
    # No dump of a graph, no internal error before that of the package, and one line.
    assert len(output) < 8_000 and "During handling" not in output, output
    assert not exit_code or re.match(r"\w+Error: ", output.splitlines()[-1]), output
