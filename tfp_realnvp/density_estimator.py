"""The density of the rows of a table, as an estimator of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np

from tfp_realnvp.internal import frames, private_api, validation, weighted_rows
from tfp_realnvp.internal.optional_packages import missing_package
from tfp_realnvp.internal.weighted_rows import Rows
from tfp_realnvp.training.table_flow import TableFlowOptions
from tfp_realnvp.training.table_stack import StackOptions, fit_table_stack

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise missing_package("FlowDensity", "scikit-learn") from error

__all__ = ["FlowDensity"]


_LEAST_VARIANCE = 1e-6
# Rounding counts where its width is at least this part of a standard deviation.
_COARSE_ROUNDING = 0.1
# Columns take few values where these occur so often, in this part of the rows.
_DISCRETE = 5, 0.9
# Numbers with more values than this, in few rows each, are measurements and no labels.
_MAX_SMALL_CLASSES, _MIN_ROWS_PER_CLASS = 10, 5


class FlowDensity(ClassifierMixin, BaseEstimator):
    r"""Density of the rows of a table, by Real NVP, as an estimator of scikit-learn.

    `fit(X)` estimates p(x). `fit(X, y)` estimates p(x | y) for each class y. `predict` then applies
    Bayes' rule, with the frequencies of the classes as p(y), and `score_samples` gives
    p(x) = Σ p(x | y) p(y).

    The estimator is for tables of tens to ten thousands of rows, whose columns can have any units.
    It holds out one part of the rows after another, fits several densities to the other rows, and
    mixes them:

    ```
    p(x) = Σ_k w_k Σ_i p_ki(x) / num_flows
    ```

    where p_ki, of kind k, did not learn from part i. The weights w_k are those that make the
    held-out rows most probable, so that the mixture can hardly lose to one of its kinds:

    *   Student t distributions with the covariance of the rows. It is shrunk towards that of
        independent columns, by the factor that makes held-out rows most probable. They have a
        weight of at least 0.01: rows far from all others are not impossible.
    *   Mixtures of 1 to 32 normal distributions, with full or diagonal covariances.
    *   Flows, which start as the Student t distributions and learn what is different. In each step
        rows get normal noise anew, which falls during the training, and held-out rows tell when to
        stop. The first flow decides: if the mixture gains no more from it than a standard error,
        there are no flows. With fewer than 150 rows none is tried.

    The density of a rounded number has no upper bound. Where columns have been rounded coarsely,
    they have uniform noise of the width of the rounding, or in normal distributions its variance.
    Where such a column takes few values, of which almost all rows have one that occurs at least
    five times, normal distributions without that variance are tried too. No variance is less than
    1e-6 of that of the column. `score_samples` is the density at the rows as they are.

    Without scikit-learn, with a condition, or for millions of rows, use `RealNVPVector` and
    `FlowModel` directly.

    All computations are in float64. The estimator can be cloned and pickled, and works in
    `Pipeline`, `GridSearchCV` and `cross_val_score`, which rank by `score`: the mean log density of
    rows. `scoring='accuracy'` ranks by predicted labels.

    Many fits in one process share the graphs of their flows, which take seconds to trace. With
    `n_jobs=2` scikit-learn starts processes that trace graphs of their own: leave it at 1, unless
    there are many long fits. In threads, `with joblib.parallel_backend('threading'):`, fits share
    the graphs, and train one flow at a time: only what comes before flows is faster.

    In a `DataFrame`, columns of integers and of `bool` count as rounded numbers, with a warning,
    since their density is not the probability of a number. Columns of categories, strings and times
    are refused, with the call that works.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=[100, 2]) @ [[1., 2.], [0., 1.]]
    >>> density = tfr.FlowDensity(num_flows=2, max_steps=50, random_state=0).fit(x)
    >>> near, far = density.score_samples([[0., 0.], [9., 9.]])   # log p in nats
    >>> bool(near > far + 10)
    True
    >>> density.sample(3).shape
    (3, 2)

    With labels, a classifier:

    >>> labels = np.where(x[:, 0] > 0, 'right', 'left')
    >>> classifier = tfr.FlowDensity(num_flows=2, max_steps=50, random_state=0).fit(x, labels)
    >>> classifier.predict([[-2., -4.], [2., 4.]])
    array(['left', 'right'], dtype='<U5')

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, 2017.
    Smyth, Wolpert: Linearly combining density estimators via stacking, 1999, for the mixture.
    """

    def __init__(
        self,
        num_flows: int = 5,
        *,
        num_couplings: int = 8,
        num_blocks: int = 1,
        num_filters: int = 32,
        transformer: Any = "affine",
        degrees_of_freedom: float = 8.0,
        noise: float | None = None,
        dequantize: bool = True,
        max_steps: int = 2_000,
        patience: int = 10,
        learning_rate: float = 2e-3,
        batch_size: int = 128,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        """Constructs the estimator; `fit` checks the arguments.

        Args:
          num_flows: parts of the rows, and flows, each of which holds out another part; at least 2.
          num_couplings: couplings of a flow, as in `RealNVPVector`.
          num_blocks: residual blocks of each network.
          num_filters: units of each layer of the networks.
          transformer: transformer of the couplings, as in `RealNVPVector`. Flows of a single column
            need a spline: affine maps only move and scale the Student t distribution.
          degrees_of_freedom: of the Student t distributions. A row far from all others is then not
            impossible.
          noise: standard deviation of the noise in training, where that of the rows is 1. With
            `None` it falls from 0.3 to 0.01, and early stopping chooses.
          dequantize: whether rounded columns get noise in training. A column counts as rounded to
            the number of decimals, at most 8, that half of its values need, if the width of the
            rounding is at least a tenth of the column's standard deviation.
          max_steps: largest number of training steps of each flow.
          patience: number of validations without improvement, one each 50 steps, after which the
            training of a flow ends. The weights are those of the best validation, or those of the
            start if that is not better by a standard error.
          learning_rate: learning rate of Adam, at the start of its cosine annealing.
          batch_size: rows in a training step, which are drawn with replacement.
          random_state: as in scikit-learn: an integer gives reproducible results.
          verbose: 1 prints the progress of the flows, with the time that is left at most.
        """
        self.num_flows = num_flows
        self.num_couplings = num_couplings
        self.num_blocks = num_blocks
        self.num_filters = num_filters
        self.transformer = transformer
        self.degrees_of_freedom = degrees_of_freedom
        self.noise = noise
        self.dequantize = dequantize
        self.max_steps = max_steps
        self.patience = patience
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        """See scikit-learn; labels are optional."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags

    def _more_tags(self) -> dict[str, Any]:
        # Tags before scikit-learn 1.6.
        return {"requires_y": False}

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> FlowDensity:
        """Estimates p(x), or with labels p(x | y) and p(y).

        A row of weight two counts as that row twice, and a row of weight zero as none. The order of
        the rows does not matter.

        Args:
          X: rows [N, D] of finite numbers, with N at least 2.
          y: labels [N] of classes, or `None`. -1 is a class only as the opposite of 1. Among other
            numbers it means "not known", as in `FlowModel` with `ClassMixture`, and is refused.
          sample_weight: nonnegative weights [N] of the rows, or `None` for ones.

        Returns:
          The estimator, with these attributes:

          *   `score_held_out_`: mean log density of held-out rows in nats, p(x | y) with labels.
              Weights and early stopping have seen these rows: it is a little too high.
          *   `score_start_`: the same without flows.
          *   `flow_gain_`: their difference, and its standard error over the rows.
          *   `history_`: of each flow that was trained, by validation: `step`, `noise`, and `lead`,
              the mean log density of held-out rows minus that of the start, with `lead_error`.
          *   `n_steps_`, `noise_`: of each flow, at the validation that was kept; 0 and NaN if it
              was not better than the start by a standard error.
          *   `rounding_widths_`: widths of the noise of rounded columns, [D].
          *   `classes_`, `class_prior_`: with labels, the classes in ascending order and their
              frequencies.

        Raises:
          ValueError: if rows, labels or weights are not as above, or an argument of the constructor
            is out of range.
        """
        self._check_arguments()
        self.__dict__.pop("classes_", None)
        self._dtypes = frames.dtypes_of(X)
        rows, y = self._checked_rows(X, y, ensure_min_samples=2, reset=True)
        weights = weighted_rows.checked_weights(sample_weight, len(rows), "FlowDensity")
        is_used = weights > 0
        if y is None:
            groups = np.zeros(np.count_nonzero(is_used), int)
        else:
            _check_labels(y)
            self.classes_, groups = np.unique(y[is_used], return_inverse=True)
        rows, groups, weights = weighted_rows.merge(rows[is_used], groups, weights[is_used])
        names = getattr(self, "feature_names_in_", range(rows.shape[1]))
        weighted_rows.warn_of_redundant_columns(rows, [str(name) for name in names], "FlowDensity")
        rows = rows.astype(np.float64)
        widths = self.dequantize * weighted_rows.rounding_widths(rows, weights)
        scale = weighted_rows.column_scales(rows, weights, widths, "FlowDensity")
        self.rounding_widths_ = widths * (widths >= _COARSE_ROUNDING * scale)
        frames.warn_of_integers(self._dtypes, self.rounding_widths_ > 0, "FlowDensity")
        self._center, self._scale = np.average(rows, axis=0, weights=weights), scale
        rows = self._standardized(rows)
        # All rounded columns are smoothed, or those that do not take few values alone.
        least_variances = [_LEAST_VARIANCE + (self.rounding_widths_ / scale) ** 2 / 12]
        is_known = weighted_rows.is_discrete(rows, weights, *_DISCRETE)
        if (is_known & (self.rounding_widths_ > 0)).any():
            least_variances.append(np.where(is_known, _LEAST_VARIANCE, least_variances[0]))
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))
        self.class_prior_ = np.bincount(groups, weights) / weights.sum()
        options = StackOptions(
            self.num_flows,
            self.degrees_of_freedom,
            self.rounding_widths_ / scale,
            least_variances,
            TableFlowOptions(*(getattr(self, name) for name in TableFlowOptions._fields)),
        )
        fits = [
            fit_table_stack(Rows(rows[groups == group], weights[groups == group]), options, rng)
            for group in range(len(self.class_prior_))
        ]
        self._stacks = [fit.stack for fit in fits]
        self.history_ = [history for fit in fits for history in fit.history]
        held_out = Rows(*(np.concatenate([fit.held_out[i] for fit in fits]) for i in range(2)))
        log_probs = np.concatenate([fit.log_probs for fit in fits]) - np.log(scale).sum()
        (self.score_start_, _), (self.score_held_out_, _), self.flow_gain_ = (
            held_out.mean_and_error(values)
            for values in (*log_probs.T, log_probs[:, 1] - log_probs[:, 0])
        )
        self.n_steps_ = np.array([each["kept_step"] for each in self.history_], int)
        self.noise_ = np.array([each["kept_noise"] for each in self.history_], float)
        return self

    def _standardized(self, rows: np.ndarray) -> np.ndarray:
        return (rows - self._center) / self._scale

    def score_samples(self, X: Any) -> np.ndarray:
        """Returns log p(x) of each row in nats, of the columns in their own units.

        Args:
          X: rows [N, D].

        Returns:
          Log densities [N], float64.
        """
        return np.logaddexp.reduce(self._joint_log_probs(X), axis=1)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Returns the mean log density of rows in nats, as scikit-learn's `GaussianMixture` does.

        It is the mean of log p(x). With labels, after `fit(X, y)`, it is that of log p(x | y).

        Args:
          X: rows [N, D].
          y: labels [N], or `None`. After a fit without labels they are ignored, as by
            `GaussianMixture`: pipelines and searches pass on what they were given.
          sample_weight: nonnegative weights [N] of the mean, or `None` for ones.

        Raises:
          ValueError: if a label is none of the classes, or weights are not as above.
        """
        if y is None or not hasattr(self, "classes_"):
            log_probs = self.score_samples(X)
        else:
            joint = self._joint_log_probs(X) - np.log(self.class_prior_)
            groups = [self._class_index(label) for label in np.asarray(y).ravel().tolist()]
            log_probs = joint[np.arange(len(joint)), groups]
        weights = weighted_rows.checked_weights(sample_weight, len(log_probs), "FlowDensity")
        return float(np.average(log_probs, weights=weights))

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable class of each row, [N], after `fit(X, y)`."""
        proba = self.predict_proba(X)
        return self.classes_[proba.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns p(y | x) of each row and class, [N, number of classes], after `fit(X, y)`."""
        message = "%(name)s: expected a call of fit(X, y) with labels before a prediction."
        check_is_fitted(self, "classes_", msg=message)
        joint = self._joint_log_probs(X)
        return np.exp(joint - np.logaddexp.reduce(joint, axis=1, keepdims=True))

    def sample(
        self,
        n_samples: int = 1,
        y: Any = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> Any:
        """Returns random rows, without the rounding of columns.

        Args:
          n_samples: number of rows N, at least 1.
          y: the class from which to sample, or `None` for p(x).
          random_state: as in scikit-learn.

        Returns:
          Rows [N, D], float64. After a fit to a pandas `DataFrame` they have the names and dtypes
          of its columns: integers are rounded, and `bool` is true from 0.5 on.

        Raises:
          ValueError: if `y` is none of the classes, or `n_samples` is less than 1.
        """
        check_is_fitted(self)
        n_samples = validation.integer(
            n_samples, 1, "FlowDensity: expected n_samples of at least 1"
        )
        rng = np.random.default_rng(check_random_state(random_state).randint(2**31 - 1))
        groups = list(range(len(self._stacks))) if y is None else [self._class_index(y)]
        prior = self.class_prior_[groups]
        counts = rng.multinomial(n_samples, prior / prior.sum())
        size = self.n_features_in_
        rows = [
            self._stacks[group].sample(np.empty([n, 0]), rng.random([n, 2 + size]))
            for group, n in zip(groups, counts, strict=True)
        ]
        rows = self._center + self._scale * rng.permutation(np.concatenate(rows))
        return rows if self._dtypes is None else frames.rows_as_frame(rows, self._dtypes)

    def _check_arguments(self) -> None:
        for name, least in (("num_flows", 2), ("max_steps", 1), ("patience", 1), ("batch_size", 1)):
            value = getattr(self, name)
            validation.integer(value, least, f"FlowDensity: expected {name} of at least {least}")
        if self.noise is not None:
            validation.finite(self.noise, 0, "FlowDensity: expected noise of at least 0, or None")
        for name in ("degrees_of_freedom", "learning_rate"):
            validation.positive(getattr(self, name), f"FlowDensity: expected a positive {name}")
        validation.flag(self.dequantize, "FlowDensity: expected a bool as dequantize")

    def _checked_rows(self, X: Any, y: Any = None, **options: Any) -> tuple[np.ndarray, Any]:
        """Returns rows, float32 or float64, and labels, by the checks of scikit-learn."""
        frames.check_columns(X, "FlowDensity")
        arrays = (X,) if y is None else (X, y)
        options["dtype"] = [np.float64, np.float32]
        try:
            checked = private_api.validate_data(self, *arrays, **options)
        except ValueError as error:
            if "Input X contains NaN" not in str(error):
                raise
            raise ValueError(
                "FlowDensity: expected rows without missing values, got NaN. Input X contains NaN. "
                "Leave out these rows or columns, or sample what is missing from a flow with "
                "tfr.latents.complete."
            ) from error
        return (checked, None) if y is None else checked

    def _class_index(self, label: Any) -> int:
        (indices,) = np.nonzero(np.atleast_1d(getattr(self, "classes_", [])) == label)
        if len(indices) != 1:
            classes = getattr(self, "classes_", np.array([])).tolist()
            raise ValueError(f"FlowDensity: expected one of the classes {classes}, got {label!r}.")
        return int(indices[0])

    def _joint_log_probs(self, X: Any) -> np.ndarray:
        """Returns log p(x, y) of each row and class, [N, number of classes]."""
        check_is_fitted(self)
        rows, _ = self._checked_rows(X, reset=False)
        rows = self._standardized(rows.astype(np.float64))
        log_probs = np.stack([stack.log_prob(rows) for stack in self._stacks], axis=1)
        return log_probs - np.log(self._scale).sum() + np.log(self.class_prior_)


def _check_labels(y: np.ndarray) -> None:
    """Raises an error if labels are numbers that are no classes."""
    check_classification_targets(y)
    if y.dtype.kind not in "iuf":
        return
    classes = np.unique(y)
    if classes[0] == -1 and classes[1:].tolist() != [1]:
        raise ValueError(
            "FlowDensity: expected labels of classes, got -1 among other numbers, which means "
            '"not known" in FlowModel with ClassMixture. If it is a class, rename it, for example '
            "by y.astype(str). If not, leave out these rows: fit(X[y != -1], y[y != -1])."
        )
    if len(classes) > max(_MAX_SMALL_CLASSES, len(y) / _MIN_ROWS_PER_CLASS):
        raise ValueError(
            f"FlowDensity: expected labels of classes, got a continuous y: {len(classes)} numbers "
            f"in {len(y)} rows. Call fit(X) for p(x), or fit(X, y.astype(str)) if the numbers are "
            "names. For p(y | x) of a number y train RealNVPVector with conditional_event_shape."
        )
