"""Two replicas train as one device does with the same batch."""

import os
import subprocess
import sys

_SCRIPT = """
import keras, numpy as np, tensorflow as tf, tensorflow_probability as tfp
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import tfp_realnvp as tfr
from tfp_realnvp.bijectors.multi_scale import shallow_conv

images = np.random.default_rng(0).integers(0, 256, [8, 4, 4, 1], dtype=np.uint8)

def step(strategy):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        bijector = tfr.RealNVPImage(
            (4, 4, 1), num_scales=1, num_filters=4, normalization=None, network_fn=shallow_conv)
        base = tfp.distributions.Sample(tfp.distributions.Normal(0.0, 1.0), [4, 4, 1])
        flow = tfp.distributions.TransformedDistribution(base, bijector)
        # Without noise, which each replica would draw for its own half.
        model = tfr.FlowModel(flow, dequantize=False)
        model.compile(keras.optimizers.SGD(1e-4))
    for variable in model.trainable_variables:
        seed = [1, sum(variable.shape)]
        noise = tf.random.stateless_normal(variable.shape, seed, stddev=0.1)
        variable.assign(variable.numpy() + noise)
    before = [variable.numpy() for variable in model.trainable_variables]
    model.fit(images, batch_size=8, verbose=0, shuffle=False)
    return [v.numpy() - old for v, old in zip(model.trainable_variables, before)]

one = step(tf.distribute.get_strategy())
two = step(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
assert max(np.abs(change).max() for change in one) > 1e-6
for alone, mirrored in zip(one, two):
    np.testing.assert_allclose(mirrored, alone, rtol=1e-3, atol=1e-6)
print("equal steps")
"""


def test_two_replicas_do_not_train_at_twice_the_rate():
    run = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, env=os.environ.copy()
    )
    assert "equal steps" in run.stdout, run.stderr[-2000:]
