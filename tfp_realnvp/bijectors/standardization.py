"""Standardization of vectors by fixed moments."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.bijectors.flow_bijector import FlowBijector, Pass
from tfp_realnvp.internal import validation


class Standardization(FlowBijector):
    r"""Standardizes each element of a vector by a fixed mean and standard deviation.

    ```
    inverse (data -> latent):  x = (y - mean) / stddev
    forward (latent -> data):  y = x * stddev + mean
    ildj = -sum(log(stddev))
    ```

    The moments are not variables; `get_config` returns them.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> rows = np.random.default_rng(0).normal(5., 2., size=[100, 3]).astype('float32')
    >>> bijector = tfr.Standardization.of(rows)
    >>> z, ildj = bijector.inverse_and_log_det(rows)
    >>> bool(abs(z.numpy().mean()) < 1e-5), bool(abs(z.numpy().std() - 1) < 1e-5), ildj.shape
    (True, True, TensorShape([100]))
    """

    def __init__(
        self,
        mean: Sequence[float],
        stddev: Sequence[float],
        *,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "standardization",
    ) -> None:
        """Constructs the bijector.

        Args:
          mean: mean of each element, [D].
          stddev: standard deviation of each element, [D], positive.
          dtype, validate_args, name: as in `FlowBijector`.

        Raises:
          ValueError: if `mean` and `stddev` are not finite vectors of equal length, or a standard
            deviation is not positive.
        """
        parameters = dict(locals())
        dtype = validation.float_dtype(dtype, name)
        moments = [np.asarray(moment, dtype.as_numpy_dtype) for moment in (mean, stddev)]
        self._mean, self._stddev = moments
        expected = f"{name}: expected a mean and a stddev, vectors of equal length"
        shapes = [moment.shape for moment in moments]
        validation.require(shapes[0] == shapes[1] and len(shapes[0]) == 1, expected, shapes)
        is_valid = bool(np.isfinite(moments).all() and (self._stddev > 0).all())
        expected = f"{name}: expected finite means, and finite and positive standard deviations"
        validation.require(is_valid, expected, [moment.tolist() for moment in moments])
        # TFP compares parameters, and Keras saves them: both need tuples of numbers.
        parameters["mean"], parameters["stddev"] = (tuple(moment.tolist()) for moment in moments)
        super().__init__(event_ndims=1, is_constant_jacobian=True, parameters=parameters)

    @classmethod
    def of(cls, data: np.ndarray, **kwargs: Any) -> "Standardization":
        """Returns the bijector with the moments of `data`. For constant columns, `stddev` is 1.

        Args:
          data: the training data, [N, D].
          **kwargs: other arguments of the constructor.

        Raises:
          ValueError: if `data` is not [N, D] and finite, or values are too close for float32.
        """
        data = np.asarray(data, np.float64)
        name = f"{cls.__name__}.of"
        expected = f"{name}: expected finite data [N, D]"
        validation.require(data.ndim == 2 and len(data) > 0, expected, data.shape)
        are_finite = np.isfinite(data)
        if not are_finite.all():
            columns = np.flatnonzero(~are_finite.all(axis=0)).tolist()
            raise ValueError(
                f"{expected}, got {np.count_nonzero(~are_finite)} values that are NaN or infinite, "
                f"in columns {columns}; drop their rows, or impute the values."
            )
        validation.columns_apart(data, tf.as_dtype(kwargs.get("dtype", tf.float32)), name)
        stddev = data.std(axis=0)
        is_constant = stddev <= 1e-12 * np.abs(data).max(axis=0)
        mean, stddev = data.mean(axis=0), np.where(is_constant, 1.0, stddev)
        return cls(mean.tolist(), stddev.tolist(), **kwargs)

    def _expected_shape(self, inverse: bool) -> tf.TensorShape:
        return tf.TensorShape([len(self._mean)])

    def _forward_and_log_det(self, x: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        fldj = self._log_det_of_positions(x, np.log(self._stddev).sum(), p)
        return x * self._stddev + self._mean, fldj

    def _inverse_and_log_det(self, y: tf.Tensor, p: Pass) -> tuple[tf.Tensor, tf.Tensor]:
        ildj = self._log_det_of_positions(y, -np.log(self._stddev).sum(), p)
        return (y - self._mean) / self._stddev, ildj
