"""Scores of events: the log density of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow_probability as tfp

from tfp_realnvp.evaluation.batched_scores import log_mean_exp, map_batches, model_of, scorer
from tfp_realnvp.training.diagnosis import warn_unless_finite
from tfp_realnvp.training.flow_model import FlowModel

__all__ = ["log_prob"]

tfd = tfp.distributions


def log_prob(
    model: FlowModel | tfd.Distribution,
    data: Any,
    conditional_input: Any = None,
    *,
    num_samples: int = 1,
    **kwargs: Any,
) -> np.ndarray:
    r"""Returns log p in nats of images with their gray levels, or of vectors.

    Gray levels are integers, of any dtype. As in training, noise in [0, 1) is added to them. For
    images x and K noise samples this is

    ```
    log 1/K sum_k p(x + u_k),   u_k ~ U[0, 1)^D
    ```

    whose mean is at most the log probability of the integers (Theis, van den Oord, Bethge 2016,
    section 3.1). The samples are determined by the seed of the model and the gray levels of the
    image, so that the score of an image does not depend on its place or on other images. More
    samples make the bound tighter, and the score less random. Vectors are taken as they are.
    `distribution.log_prob` takes continuous pixel values, without noise. The mean over a dataset,
    with its standard error, is `tfr.evaluation.log_likelihood`, or in bits/dim
    `tfr.evaluation.bits_per_dim`.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [8, 8, 1]),
    ...     tfr.RealNVPImage((8, 8, 1), num_scales=1, num_blocks=1, num_filters=4))
    >>> images = np.random.default_rng(0).integers(0, 256, [3, 8, 8, 1], dtype=np.uint8)
    >>> tfr.log_prob(flow, images).shape
    (3,)
    >>> tfr.log_prob(flow, images, num_samples=4).shape   # a tighter bound
    (3,)

    Args:
      model: a `FlowModel`; or the distribution of one, with uniform noise. Its distribution is
        traced at the first call.
      data: events [N, H, W, C] or [N, D], or whatever else `FlowModel.predict` takes. Numbers are
        cast to the dtype of the distribution.
      conditional_input: conditions of the events [N, ...], if the distribution takes any.
      num_samples: number of noise samples K, each of which takes a pass of the networks.
      **kwargs: `batch_size` of arrays, 32 by default; `steps`, the number of batches, for a dataset
        without end; and `verbose`, as in `FlowModel.predict`, but 0 by default.

    Returns:
      Log densities [N]. With a `VariationalDequantization` q, p(x + u) / q(u | x) takes the place
      of p(x + u).

    Raises:
      TypeError: if `model` is neither a `FlowModel` nor a distribution.
      ValueError: if events or conditions are not as declared, as in `FlowModel.fit`; or values
        without noise have several noise samples.
    """
    caller = "log_prob"
    if conditional_input is not None:
        data = (data, conditional_input)
    model = model_of(model, caller)
    samples = map_batches(scorer(model, caller, num_samples), model, caller, data, **kwargs)
    log_probs = log_mean_exp(samples).astype(samples.dtype)
    warn_unless_finite(log_probs, "predict")
    return log_probs
