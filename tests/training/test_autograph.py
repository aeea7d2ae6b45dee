"""Steps in a `tf.function` of the user's: a new process says nothing."""

import forked

_SCRIPT = """
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr

tf.zeros([])
print("started", flush=True)
options = {"num_scales": 1, "num_couplings": 1, "num_blocks": 0, "num_filters": 2}
flow = tfr.RealNVPImage((2, 2, 1), num_classes=2, **options)
base = tfd.Sample(tfd.Normal(0.0, 1.0), [2, 2, 1])
model = tfr.FlowModel(tfd.TransformedDistribution(base, flow))
model.compile()
model.build_optimizer()
images = tf.constant(np.arange(32).reshape([8, 2, 2, 1]), tf.uint8)
labels = tf.constant([0, 1] * 4)
first = [variable.numpy() for variable in model.trainable_variables]
logs = tf.function(model.train_step)((images, labels))
changes = [np.abs(v - old).max() for v, old in zip(model.trainable_variables, first)]
assert max(changes) > 0
logs = tf.function(lambda x, y: model.train_step((x, y)))(images, labels)
model.reset_metrics()
logs = tf.function(lambda x, y: model.test_step((x, y)))(images, labels)
log_prob = tf.function(lambda x, y: model.predict_step((x, y)))(images, labels)
np.testing.assert_allclose(-tf.reduce_mean(log_prob), logs["loss"], rtol=1e-5)
print(tf.function(lambda x, y: model((tfr.dequantize(x, (0, 0)), y)))(images, labels).shape)
"""


def test_steps_in_a_function_of_the_user(tmp_path):
    exit_code, output = forked.run(_SCRIPT, tmp_path)
    # TensorFlow logs at its import and its first operation.
    assert exit_code == 0 and output.split("started\n")[1] == "(8,)\n", output[-4000:]
