"""What holds for any bijector that can be built, and what an error must say."""

import re

import numpy as np
import tensorflow as tf

# Sentences of Python, TensorFlow and Keras about types that no constructor here looks at itself.
_OTHERS = (
    "must be a string",
    "is not a valid root scope name",
    "is not a valid module name",
    "to a TensorFlow DType",
    "Attempt to convert a value",
)


def built_or_refused(construct):
    """Returns what `construct` builds, or `None` if it says in a sentence why it does not."""
    try:
        return construct()
    except (TypeError, ValueError) as error:
        message = str(error)
        is_ours = re.search("expected .*got ", message, re.DOTALL)
        if not (is_ours or any(sentence in message for sentence in _OTHERS)):
            raise AssertionError(f"no sentence: {message!r}") from error
        return None


def assert_bijective(bijector, data, *, resolution, **given):
    """Checks round trip and log dets of [..., H, W, C] data.

    Args:
      bijector: any, on images.
      data: where it is to be invertible, of its dtype.
      resolution: how exact the round trip is, in units of the dtype's epsilon at the largest datum.
      **given: `conditional_input`.
    """
    epsilon = np.finfo(data.dtype.as_numpy_dtype).eps
    latents = bijector.inverse(data, **given)
    ildj = bijector.inverse_log_det_jacobian(data, event_ndims=3, **given)
    # Identities: the cache would hand out what it holds.
    again = bijector.forward(tf.identity(latents), **given)
    fldj = bijector.forward_log_det_jacobian(tf.identity(latents), event_ndims=3, **given)

    assert again.shape == data.shape and again.dtype == latents.dtype == data.dtype
    assert latents.shape == bijector.inverse_event_shape(data.shape)
    for log_det in (ildj, fldj):
        log_det = np.asarray(log_det)
        assert np.isfinite(log_det).all()
        assert not log_det.shape or log_det.shape == tuple(data.shape[:-3])
    assert np.isfinite(latents).all()
    size = float(np.max(np.abs(data)))
    atol = resolution * epsilon * max(size, 1.0)
    np.testing.assert_allclose(again, data, rtol=0, atol=atol)
    num_dims = int(np.prod(data.shape[-3:]))
    atol = resolution * epsilon * num_dims
    np.testing.assert_allclose(fldj, -ildj, rtol=resolution * epsilon, atol=atol)
