"""The log density of data as it is, for a model or a distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow_probability as tfp

from tfp_realnvp.training.flow_model import FlowModel

__all__ = ["log_prob"]

tfd = tfp.distributions


def log_prob(
    model: FlowModel | tfd.Distribution, data: Any, conditional_input: Any = None, **kwargs: Any
) -> np.ndarray:
    """Returns log p in nats of images with their gray levels, or of vectors.

    Gray levels are integers, of any dtype. As in training, noise in [0, 1) is added to them, the
    same in each call, so that for images x this is `log p(x + u)`, whose mean is at most the log
    probability of the integers (Theis, van den Oord, Bethge 2016, section 3.1). Vectors are taken
    as they are. `distribution.log_prob` takes continuous pixel values, without noise.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [8, 8, 1]),
    ...     tfr.RealNVPImage((8, 8, 1), num_scales=1, num_blocks=1, num_filters=4))
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 1], dtype=np.uint8)
    >>> tfr.log_prob(flow, images).shape
    (3,)

    Args:
      model: a `FlowModel`; or the distribution of one, with uniform noise. A model is traced at its
        first call, and again for a smaller last batch; a distribution at each call.
      data: events [N, H, W, C] or [N, D], or whatever else `FlowModel.predict` takes.
      conditional_input: conditions of the events [N, ...], if the distribution takes any.
      **kwargs: as in `FlowModel.predict`, for example `batch_size`.

    Returns:
      Log densities [N]. With a `VariationalDequantization` q, `log p(x + u) - log q(u | x)`.

    Raises:
      TypeError: if `model` is neither a `FlowModel` nor a distribution.
      ValueError: if events or conditions are not as declared, as in `FlowModel.fit`.
    """
    if not isinstance(model, FlowModel):
        model = FlowModel(model)
    if conditional_input is not None:
        data = (data, conditional_input)
    return model.predict(data, **{"verbose": 0, **kwargs})
