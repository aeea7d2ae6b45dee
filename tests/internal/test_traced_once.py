import logging

import numpy as np
import pytest
import tensorflow as tf

from tfp_realnvp.internal.memoize import traced_once


@pytest.fixture
def tensorflow_log(caplog):
    """Returns a `caplog` of TensorFlow's logger, which does not pass its records on."""
    logger = logging.getLogger("tensorflow")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level("WARNING", logger.name):
            yield caplog
    finally:
        logger.removeHandler(caplog.handler)


def test_calls_of_many_shapes_log_no_warning_and_have_gradients(tensorflow_log):
    # More shapes than TensorFlow takes before it warns of traces, which are 5.
    cube = traced_once(lambda x: x**3)
    for size in range(1, 8):
        value = np.linspace(-1, 1, size).astype("float32")
        variable = tf.Variable(value)
        with tf.GradientTape() as tape:
            result = cube(variable)
        np.testing.assert_allclose(result, value**3, rtol=1e-6)
        np.testing.assert_allclose(tape.gradient(result, variable), 3 * value**2, rtol=1e-6)
    assert [record.message for record in tensorflow_log.records] == []
