"""A scikit-learn outlier detector for tables: outliers are rows of low density."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import OutlierMixin, clone
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted, validate_data

from tfp_realnvp.internal import validation
from tfp_realnvp.tables import frames, missing
from tfp_realnvp.tables.estimator import EstimatorWithGaps
from tfp_realnvp.tables.flow_density import FlowDensity

_NUM_SAMPLES = 256


class FlowOutlierDetector(OutlierMixin, EstimatorWithGaps):
    """A scikit-learn detector that reports rows of low density as outliers.

    As with `IsolationForest`, `predict` returns -1 for outliers and 1 for other rows, and
    `contamination` is the fraction of training rows to report. To bound the false alarm rate on new
    rows, pass the negated `score_samples` to `tfr.outliers.p_values`.

    By default, noise of 0.1 standard deviations of each column smooths the density. Without noise,
    the density could peak at a value that many rows share, and rows beside the peak would count as
    outliers. For skewed columns, try ranks or logarithms: they change which rows are improbable.

    A row with missing cells has a density of fewer columns, whose level depends on their units.
    `score_samples` therefore compares the log density of the known cells, log p(x_S), with the same
    columns S of 256 samples of the density. The score is the log density of a complete row that
    lies as many standard deviations from the mean:

    ```
    score(x) = mean(log p) + std(log p) * (log p(x_S) - mean(log p_S)) / std(log p_S)
    ```

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> x = np.random.default_rng(0).normal(size=[100, 2]) @ [[1., 2.], [0., 1.]]
    >>> detector = tfr.FlowOutlierDetector(contamination=0.05).fit(x)
    >>> detector.predict([[0., 0.], [9., -9.]])
    array([ 1, -1])
    >>> int((detector.predict(x) == -1).sum())
    5

    Attributes:
      density_: the fitted density estimator.
      offset_: the log density below which rows are outliers, in nats.
      n_features_in_: the number of columns.
      feature_names_in_: the names of the columns, if `fit` got a `DataFrame` with strings as names.
    """

    def __init__(self, density: Any = None, *, contamination: float = 0.1) -> None:
        """Constructs the detector; `fit` checks the arguments.

        Args:
          density: a density estimator with the methods `fit` and `score_samples`, or a pipeline
            that ends with one; by default `FlowDensity(noise=0.1)`.
          contamination: the fraction of training rows to report as outliers, in (0, 0.5].
        """
        self.density = density
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None) -> "FlowOutlierDetector":
        """Fits the density to rows X [N, D], as in `FlowDensity.fit`; ignores `y`.

        Raises:
          ValueError: if the rows are invalid, or a constructor argument is out of range.
        """
        expected = "FlowOutlierDetector: expected a contamination in (0, 0.5]"
        validation.real(self.contamination, lambda share: 0 < share <= 0.5, expected)
        density = FlowDensity(noise=0.1) if self.density is None else clone(self.density)
        density.fit(X)
        offset = np.percentile(_comparable_scores(density, X), 100 * self.contamination)
        # Set all attributes last, so that an error leaves the estimator unchanged.
        self.density_, self.offset_ = density, offset
        validate_data(self, X, skip_check_array=True)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Returns the log density of each row in nats, [N], which is low for outliers.

        For rows with missing cells, see the docstring of the class. Rows without a known cell have
        the mean score of the density's samples.
        """
        check_is_fitted(self)
        return _comparable_scores(self.density_, X)

    def decision_function(self, X: Any) -> np.ndarray:
        """Returns `score_samples(X) - offset_`, [N]; negative for outliers."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Returns -1 for outliers and 1 for other rows, [N]."""
        return np.where(self.decision_function(X) < 0, -1, 1)


def _comparable_scores(density: Any, X: Any) -> np.ndarray:
    """Returns log densities of rows, [N]; with missing cells on the scale of complete rows."""
    scores = density.score_samples(X)
    if isinstance(density, Pipeline):
        X, density = density[:-1].transform(X), density[-1]
    is_missing = pd.isna(frames.as_frame(X)).to_numpy()
    if not is_missing.any():
        return scores
    samples = density.sample(_NUM_SAMPLES, random_state=0)
    of_samples = density.score_samples(samples)
    mean, stddev = of_samples.mean(), of_samples.std()
    for is_unknown, rows in missing.patterns(np.where(is_missing, np.nan, 0.0)):
        if is_unknown.all():
            scores[rows] = mean
        elif is_unknown.any():
            part = pd.DataFrame(samples).copy()
            for i in np.flatnonzero(is_unknown):
                part.isetitem(i, np.nan)
            part = part if isinstance(samples, pd.DataFrame) else part.to_numpy()
            of_part = density.score_samples(part)
            scores[rows] = mean + stddev * (scores[rows] - of_part.mean()) / of_part.std()
    return scores
