"""A scikit-learn estimator of the density of table rows."""

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp, softmax
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from tfp_realnvp.internal import batch_dims, validation
from tfp_realnvp.internal.progress import Progress
from tfp_realnvp.tables import frames, missing
from tfp_realnvp.tables.categories import CategoryMixture, fit_category_mixture
from tfp_realnvp.tables.estimator import TableEstimator, generator
from tfp_realnvp.tables.table import Rows, checked_weights, codes_of

# More distinct numeric labels than this, with few rows each, are measurements, not classes.
_MAX_SMALL_CLASSES, _MIN_ROWS_PER_CLASS = 10, 5
_CHUNK_SIZE = 2**18
# `score_samples` averages over proposals, and needs fewer of them than `impute`, which draws
# samples from them.
_PROPOSALS_OF_SCORES, _PROPOSALS_OF_SAMPLES = 32, 128
_LEAST_EFFECTIVE_SIZE, _POOR_SHARE, _STACK_LEVEL = 5, 0.2, 5


class FlowDensity(ClassifierMixin, TableEstimator):
    r"""A scikit-learn estimator of the density of table rows, with Real NVP.

    `fit(X)` estimates p(x). `fit(X, y)` estimates p(x | y) for each class y. `predict` then applies
    Bayes' rule with the frequencies of the classes as p(y). `score_samples` returns log p(x), where
    p(x) = Σ p(x | y) p(y).

    The estimator suits tables of tens to tens of thousands of rows. Columns can have any units.
    The estimator splits the rows into folds, as cross-validation does. For each fold, it fits
    several kinds of densities to the other folds. The result is their mixture:

    ```
    p(x) = Σ_k w_k Σ_i p_ki(x) / num_flows
    ```

    where p_ki is the density of kind k, fitted without fold i. The weights w_k maximize the
    likelihood of the held-out rows. The kinds are:

    *   Student t distributions with the covariance of the rows, shrunk towards independent columns.
        Held-out likelihood selects the shrinkage. Their weight is at least 0.01, or 10 / N for more
        than 1,000 rows: their heavy tails cover rows far from all others.
    *   Mixtures of 1 to 32 normal distributions, with full or diagonal covariances.
    *   Flows, initialized as the Student t distributions. Each training step adds normal noise to
        its batch; the noise decreases during training. Held-out rows decide when to stop. The
        mixture has no flows if there are fewer than 150 rows, if training does not improve the
        first flow, or if the first flow improves the mixture by at most one standard error. From
        50,000 rows on, the default is a single, larger flow.

    Equal rows are always in the same fold. Standard errors use Kish's effective number of distinct
    rows, (Σ w)² / Σ w², with row weights w.

    The likelihood of rounded numbers has no upper bound: a density can have arbitrarily narrow
    peaks at the numbers. For coarsely rounded columns, the training of flows therefore adds uniform
    noise of the rounding width, and normal mixtures get the variance of this noise; see
    `dequantize`. Component variances are at least 1e-6 times the variance of the (mapped) column. A
    rounded column "takes few values" if at least 90% of its rows, not counting the most frequent
    value, have values that occur in at least five distinct rows. For such a column, `fit` also
    tries normal mixtures without the rounding variance, and issues a warning. `score_samples` then
    returns the log height of narrow peaks at these values. The height of a peak depends on its
    width, can exceed 1, and is not a probability.

    The CDF of a truncated normal distribution, followed by the normal quantile function, maps a
    column with `bounds` to the real line. The truncation points lie outside of the bounds: by half
    the rounding width, but at least by 0.001 standard deviations. The density at the bounds is
    therefore finite. Samples beyond a bound are clipped to the bound. For a periodic column, the
    density at x is the sum of a density on the real line at x and at its images one period below
    and above.

    With categorical columns c, the density is p(c) p(numbers | c). p(c) is a latent class model: a
    mixture of distributions with independent columns. Held-out likelihood selects the number of its
    components. p(numbers | c) is the mixture above; all of its densities are conditioned on
    indicators of the categories. No known category has probability 0, and the probabilities of all
    categories add up to 1.

    Networks compute in float32, everything else in float64. `GridSearchCV` and `cross_val_score`
    use `score`, the mean log density, or with `scoring='accuracy'` the predicted labels. Tracing
    the flows takes seconds, once per process. With `n_jobs=2`, each worker process traces the flows
    again: keep `n_jobs=1` unless there are many long fits.

    Missing cells are NaN, `None` in categories, or masked cells of `np.ma` arrays. Before it
    estimates the densities, `fit` imputes missing cells: it samples them from a normal mixture
    given the other cells, separately for each fold. This assumes that cells are missing at random:
    whether a cell is missing depends on known cells alone. Scores and predictions of a row with
    missing cells use the marginal density of the known cells.

    For conditional densities, or millions of rows, use `RealNVPVector` and `FlowModel`.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=[100, 2]) @ [[1., 2.], [0., 1.]]
    >>> options = {"num_flows": 2, "max_steps": 50, "random_state": 0, "verbose": 0}
    >>> density = tfr.FlowDensity(**options).fit(x)
    >>> near, far = density.score_samples([[0., 0.], [9., 9.]])   # log p in nats
    >>> bool(near > far + 10)
    True
    >>> density.sample(3).shape
    (3, 2)

    With labels, a classifier:

    >>> labels = np.where(x[:, 0] > 0, 'right', 'left')
    >>> classifier = tfr.FlowDensity(**options).fit(x, labels)
    >>> classifier.predict([[-2., -4.], [2., 4.]])
    array(['left', 'right'], dtype='<U5')

    #### References

    Rubin: Multiple imputation for nonresponse in surveys, 1987, for missing cells.
    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, 2017.
    Smyth, Wolpert: Linearly combining density estimators via stacking, 1999, for the mixture.
    """

    _is_density = True

    def __sklearn_tags__(self) -> Any:
        """See scikit-learn; labels are optional."""
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> "FlowDensity":
        """Estimates p(x), or with labels p(x | y) and p(y).

        A row of weight two counts twice, and a row of weight zero is ignored. The order of the rows
        does not matter. If `fit` raises an error, the estimator does not change.

        Ctrl-C during the training of flows ends the training, as in `MLPClassifier`. The estimator
        keeps the finished flows, the best weights so far of the flow in training, and all other
        densities; the rows that these flows held out determine the mixture weights. A
        `ConvergenceWarning` says how many flows are missing.
        Before the training of flows, Ctrl-C raises `KeyboardInterrupt`, and the estimator does not
        change.

        Args:
          X: rows [N, D] of finite numbers and categories, with N at least 2, and NaN or `None` in
            missing cells. Rows without a known cell are ignored. Each numeric column needs a known
            cell; with labels, it needs one in each class.
          y: class labels [N], or `None`. -1 is a valid label only if 1 is the only other label.
            Otherwise -1 raises an error, because `ClassMixture` uses -1 for unknown labels.
          sample_weight: nonnegative weights [N] of the rows, or `None` for ones.

        Returns:
          The estimator, with these attributes:

          *   `score_held_out_`: mean log density of held-out rows in nats: log p(x), or with labels
              log p(x | y). The mean is slightly too high, because these rows also determine mixture
              weights and early stopping. For missing cells, the mean includes the imputed values.
          *   `score_start_`: the mean log density of held-out rows under the mixture without flows.
          *   `flow_gain_`: a pair: `score_held_out_ - score_start_`, in nats per held-out row, and
              its standard error. (0.0, 0.0) without flows.
          *   `history_`: for each flow, a dictionary of lists with one element per validation:
              `step`, `noise`, and `lead`, the mean gain in held-out log density over the initial
              flow, with its standard error `lead_error`.
          *   `n_steps_`, `noise_`: for each flow, the step and the noise at which its final weights
              were saved; 0 and NaN if these are the initial weights. `fit` issues a
              `ConvergenceWarning` if the training diverged.
          *   `rounding_widths_`: rounding widths of coarsely rounded columns, 0 for others, [D].
          *   `classes_`, `class_prior_`: with labels, the classes in ascending order and their
              frequencies.

        Raises:
          ValueError: if the data are not as above, or a constructor argument is out of range.
        """
        return self._fit_or_keep(X, y, sample_weight)

    def _fit(self, X: Any, y: Any, sample_weight: Any) -> None:
        self.__dict__.pop("classes_", None)
        self._dtypes = X.dtypes if isinstance(X, pd.DataFrame) else None
        if y is not None and (is_missing := pd.isna(np.ravel(np.asarray(y, object)))).any():
            raise ValueError(
                f"{self._name}: expected a label in each row, got {is_missing.sum()} rows with NaN "
                "or None in y; drop these rows by X[y.notna()] and y[y.notna()]."
            )
        checked = self._validated(X, *(() if y is None else (y,)), ensure_min_samples=2)
        rows, labels = (checked, np.zeros(len(checked))) if y is None else checked
        _check_labels(labels)
        weights = checked_weights(sample_weight, len(rows), self._name)
        weights = np.where(np.isnan(rows).all(axis=1), 0.0, weights)
        self._require(weights.any(), "rows with known cells", rows)
        rows, labels, weights = (each[weights > 0] for each in (rows, labels, weights))
        rows, names, limits = self._limits(rows, self.bounds)
        self._require(names, "at least one numeric column", "none")
        classes, groups = np.unique(labels, return_inverse=True)
        # Merging equal rows makes a fit independent of the order and repetition of rows.
        table = Rows.merged(np.column_stack([groups, *self._split(rows)]), weights)
        groups, indicators, numbers = np.split(table.values, [1, 1 + sum(self._sizes)], axis=1)
        groups, weights = groups[:, 0].astype(int), table.weights

        self._x_columns = self._columns_of(indicators, weights, {})._replace(sizes=self._sizes)
        self._columns = self._columns_of(numbers, weights, limits)
        x = self._conditions_of(indicators)
        fits = self._fit_simple_densities(x, numbers, groups, weights, names)
        rng = generator(self.random_state)
        mixtures = [fit_category_mixture(fit.splits, self._x_columns, rng) for fit in fits]
        self._fit_flows(fits)

        self._category_mixtures, scores = zip(*mixtures, strict=True)
        self.class_prior_ = np.bincount(groups, weights) / weights.sum()
        self.score_held_out_ += self.class_prior_ @ scores
        self.score_start_ += self.class_prior_ @ scores
        widths = np.zeros(rows.shape[1])
        widths[~self._are_categories] = self.rounding_widths_
        self.rounding_widths_ = widths
        if y is not None:
            self.classes_ = classes

    def score_samples(self, X: Any) -> np.ndarray:
        """Returns log p(x) of rows [N, D] in nats, [N], float64, in the original units of columns.

        Missing cells are integrated out: exactly for normal mixtures, and by importance sampling
        with 32 proposals for other densities. The difference of two such results is a conditional
        log density: `log p(a | b) = log p(a, b) - log p(b)`.

        The result is -inf out of bounds, and for numbers whose squares overflow float64.
        """
        return np.logaddexp.reduce(self._joint_log_probs(X), axis=1)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Returns the mean log density of rows in nats: log p(x), or with labels log p(x | y).

        Args:
          X: rows [N, D].
          y: labels [N], or `None`. An estimator that was fitted without labels ignores them, since
            scikit-learn's pipelines and searches always pass them.
          sample_weight: nonnegative weights [N] for the mean, or `None` for ones.
        """
        if y is None or not hasattr(self, "classes_"):
            log_probs = self.score_samples(X)
        else:
            joint = self._joint_log_probs(X) - np.log(self.class_prior_)
            groups = [self._class_index(label) for label in np.asarray(y).ravel().tolist()]
            log_probs = joint[np.arange(len(joint)), groups]
        weights = checked_weights(sample_weight, len(log_probs), "FlowDensity")
        # A row of weight 0 is ignored, even if its log density is -inf.
        return float(np.average(np.where(weights > 0, log_probs, 0.0), weights=weights))

    def predict(self, X: Any) -> np.ndarray:
        """Returns the most probable class of each row, [N], after `fit(X, y)`."""
        indices = self.predict_proba(X).argmax(axis=1)
        return self.classes_[indices]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Returns p(y | x) of each row and class, [N, number of classes], after `fit(X, y)`."""
        message = "%(name)s: call fit(X, y) with labels before a prediction."
        check_is_fitted(self, "classes_", msg=message)
        joint = self._joint_log_probs(X)
        # A row of density 0 in all classes says nothing about its class. Use the frequencies.
        is_possible = np.isfinite(joint).any(axis=1, keepdims=True)
        joint = np.where(is_possible, joint, np.log(self.class_prior_))
        return softmax(joint, axis=1)

    def sample(self, n_samples: int = 1, y: Any = None, random_state: Any = None) -> Any:
        """Samples rows; values are not rounded, and constant columns keep their value.

        Args:
          n_samples: number of rows N, at least 1.
          y: the class from which to sample, or `None` for p(x).
          random_state: as in scikit-learn.

        Returns:
          Rows [N, D], float64. After a fit to a `DataFrame`, the result is a `DataFrame` with the
          same column names and dtypes, and integer columns are rounded. An array with categories
          that are not numbers has dtype object.
        """
        check_is_fitted(self)
        n_samples = validation.count(n_samples, "n_samples", 1, "FlowDensity")
        rng = generator(random_state)
        groups = [*range(len(self._stacks))] if y is None else [self._class_index(y)]
        prior, samples = self.class_prior_[groups], []
        for group, n in zip(groups, rng.multinomial(n_samples, prior / prior.sum()), strict=True):
            unknown = np.full([n, sum(self._sizes)], np.nan)
            uniforms = rng.random([n, 1 + len(self._sizes)])
            indicators = self._category_mixtures[group].sample(unknown, uniforms)
            uniforms = rng.random([n, 2 + len(self._columns.center)])
            numbers = self._stacks[group].sample(self._conditions_of(indicators), uniforms)
            samples.append(np.column_stack([indicators, numbers]))
        rows = self._decoded(rng.permutation(np.concatenate(samples)))
        rows = frames.decoded(rows, self._categories)
        return rows if self._dtypes is None else frames.rows_as_frame(rows, self._dtypes)

    def impute(self, X: Any, n_samples: int | None = None, random_state: Any = None) -> Any:
        """Imputes missing cells with samples from p(missing cells | other cells).

        The mean of several samples predicts a cell, and their quantiles give intervals. Samples
        from normal mixtures are exact; for other densities, `impute` resamples 128 proposals. A
        warning names a row whose result depends on few proposals.

        #### Example

        >>> import numpy as np, tfp_realnvp as tfr
        >>> x = np.random.default_rng(0).normal(size=[100, 2]) @ [[1., 2.], [0., 0.1]]
        >>> density = tfr.FlowDensity(random_state=0, verbose=0).fit(x)
        >>> row = [[np.nan, 2.]]                              # the second column is 2 x first
        >>> filled = density.impute(row, 50, random_state=0)
        >>> filled.shape, round(float(filled[:, 0, 0].mean()))
        ((50, 1, 2), 1)

        Args:
          X: rows [N, D] with NaN in missing cells, or `None` in missing categories.
          n_samples: number S of samples per row, at least 1, or `None` for a single one.
          random_state: as in scikit-learn.

        Returns:
          Rows without missing cells, [S, N, D], float64. If `n_samples` is `None`, the shape is
          [N, D], and a `DataFrame` X gives a `DataFrame` with the dtypes of the fit.
        """
        number = validation.count(1 if n_samples is None else n_samples, "n_samples", 1, self._name)
        rng = generator(random_state)
        rows, encoded = self._checked(X)
        samples = np.tile(encoded, [number, 1, 1])
        for chosen, copies, units, masses in self._units(encoded, _PROPOSALS_OF_SAMPLES):
            # Systematic resampling: one draw from each of S equal intervals of the cumulative
            # weight.
            ends = softmax(masses, axis=(0, 1)).reshape([-1, len(chosen)]).cumsum(axis=0)
            levels = np.arange(number)[:, np.newaxis] + rng.random([1, len(chosen)])
            levels = rng.permuted(levels / number, axis=0) * ends[-1]
            picks = (levels[:, np.newaxis] > ends[:-1]).sum(axis=1)
            unit_of, copy_of = np.divmod(picks, len(copies))
            filled = copies[copy_of, np.arange(len(chosen))]
            is_missing = np.isnan(filled[0, 0])
            for k, (_, unit) in enumerate(units):
                s, i = np.nonzero(unit_of == k)
                uniforms = rng.random([len(s), 1 + is_missing.sum()])
                cells = unit.sample(copy_of[s, i] * len(chosen) + i, uniforms)
                filled[s[:, np.newaxis], i[:, np.newaxis], np.flatnonzero(is_missing)] = cells
            samples[:, chosen] = filled
        filled = np.where(np.isnan(rows), self._decoded(samples), rows)
        filled = frames.decoded(filled, self._categories)
        filled = filled[0] if n_samples is None else filled
        if n_samples is not None or not isinstance(X, pd.DataFrame):
            return filled
        dtypes = X.dtypes if self._dtypes is None else self._dtypes
        return frames.rows_as_frame(filled, dtypes).set_axis(X.index)

    def _class_index(self, label: Any) -> int:
        classes = getattr(self, "classes_", np.array([])).tolist()
        self._require(label in classes, f"one of the classes {classes}", label)
        return classes.index(label)

    def _joint_log_probs(self, X: Any) -> np.ndarray:
        """Returns log p(x, y) of rows and each class, [N, number of classes]."""
        rows, encoded = self._checked(X)
        log_probs = np.empty([len(rows), len(self._stacks)])
        for chosen, _, units, masses in self._units(encoded, _PROPOSALS_OF_SCORES):
            groups = np.array([group for group, _ in units])
            for i in range(len(self._stacks)):
                log_probs[chosen, i] = logsumexp(masses[groups == i], axis=(0, 1))
        log_probs[np.isnan(encoded).all(axis=1)] = np.log(self.class_prior_)
        log_slopes = self._columns.log_slopes(self._split(rows)[1])
        return log_probs + log_slopes.sum(axis=1, keepdims=True)

    def _units(self, encoded: np.ndarray, num_proposals: int) -> Iterator[tuple[Any, ...]]:
        """Conditions the densities on encoded rows, in chunks of N rows that miss the same cells.

        Yields row indices [N], completions [E, N, H + D], U pairs of a class index and a `Given`
        for all completions, and log p(x, y), [U, E, N]. The E completions of a row enumerate its
        missing categories and neighboring periods; missing numbers stay NaN.
        """
        progress, done, num_indicators = Progress("", self.verbose), 0, sum(self._sizes)
        mixture = CategoryMixture.of(self._category_mixtures, self.class_prior_)
        for is_missing, indices in missing.patterns(encoded):
            is_event = is_missing & (np.arange(len(is_missing)) >= num_indicators)
            num_copies = len(self._copies(mixture, encoded[indices[:1]])[0])
            num_copies *= num_proposals if is_event.any() else 1
            for (chosen,) in batch_dims.slices(max(1, _CHUNK_SIZE // num_copies), indices):
                copies, factors = self._copies(mixture, encoded[chosen])
                indicators, numbers = np.split(np.concatenate(copies), [num_indicators], axis=1)
                rows = np.column_stack([self._conditions_of(indicators), numbers])
                units, masses = [], []
                for i, of_class in enumerate(self._category_mixtures):
                    log_prior = factors + of_class.log_prob(indicators).reshape(factors.shape)
                    log_prior += np.log(self.class_prior_[i])
                    for unit in missing.given(self._stacks[i], rows, is_event, num_proposals):
                        units.append((i, unit))
                        masses.append(unit.log_mass.reshape(factors.shape) + log_prior)
                self._warn_of_poor(chosen, units, np.stack(masses))
                yield chosen, copies, units, np.stack(masses)
                done += len(chosen)
                progress(f"{done:,} of {len(encoded):,} rows")

    def _copies(self, mixture: CategoryMixture, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns completions [E, N, H + D], see `_units`, and log importance weights, [E, N]."""
        indicators, numbers = np.split(rows, [sum(self._sizes)], axis=1)
        indicators, factors = mixture.completions(indicators)
        images = self._columns.images(numbers)
        copies = [np.column_stack(pair) for pair in itertools.product(indicators, images)]
        return np.stack(copies), np.repeat(factors, len(images), axis=0)

    @np.errstate(invalid="ignore")
    def _warn_of_poor(self, chosen: np.ndarray, units: list[Any], masses: np.ndarray) -> None:
        """Issues a warning if the density of a row depends on few proposals."""
        sizes = np.stack([unit.size.reshape(masses.shape[1:]) for _, unit in units])
        shares = softmax(masses, axis=(0, 1)) * (sizes < _LEAST_EFFECTIVE_SIZE)
        is_poor = shares.sum(axis=(0, 1)) > _POOR_SHARE
        if is_poor.any():
            warnings.warn(
                f"{self._name}: the results for {is_poor.sum()} rows with missing cells, such as "
                f"row {chosen[is_poor.argmax()]}, rest on few proposals: the known cells are "
                "improbable, or the missing cells have a density unlike a normal mixture.",
                stacklevel=_STACK_LEVEL,
            )

    def _checked(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        """Returns checked rows in original units, and encoded: indicators, standardized numbers."""
        check_is_fitted(self)
        rows = self._validated(X, reset=False).astype(np.float64)
        indicators, numbers = self._split(rows)
        return rows, np.column_stack([indicators, self._columns.standardized(numbers)])

    def _decoded(self, encoded: np.ndarray) -> np.ndarray:
        """Decodes rows to [..., D]: numbers in their original units, and codes of categories."""
        indicators, numbers = np.split(encoded, [sum(self._sizes)], axis=-1)
        rows = np.empty([*encoded.shape[:-1], self.n_features_in_])
        rows[..., self._are_categories] = codes_of(indicators, self._sizes)
        rows[..., ~self._are_categories] = self._columns.in_units(numbers)
        return rows


def _check_labels(y: np.ndarray) -> None:
    check_classification_targets(y)
    if y.dtype.kind not in "iuf":
        return
    classes = np.unique(y)
    if classes[0] == -1 and classes[1:].tolist() != [1]:
        raise ValueError(
            "FlowDensity: expected labels of classes, got -1 among other numbers, which means "
            '"unknown" for a ClassMixture. If -1 is a class, rename it, for example '
            "by y.astype(str). If not, leave out these rows: fit(X[y != -1], y[y != -1])."
        )
    if len(classes) > max(_MAX_SMALL_CLASSES, len(y) / _MIN_ROWS_PER_CLASS):
        raise ValueError(
            f"FlowDensity: expected labels of classes, got a continuous y: {len(classes)} numbers "
            f"in {len(y)} rows. Call fit(X) for p(x), or fit(X, y.astype(str)) if the numbers are "
            "names. For p(y | x) of a number y call FlowRegressor().fit(X, y)."
        )
