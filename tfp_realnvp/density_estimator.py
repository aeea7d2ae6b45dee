"""The density of the rows of a table, as an estimator of scikit-learn."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import threading
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors import RealNVPVector
from tfp_realnvp.internal import private_api, validation, weighted_rows
from tfp_realnvp.internal.optional_packages import missing_package
from tfp_realnvp.internal.weighted_rows import Rows
from tfp_realnvp.training.flow_model import FlowModel
from tfp_realnvp.training.optimizers import FusedAdam

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise missing_package("FlowDensity", "scikit-learn") from error

__all__ = ["FlowDensity"]

tfd = tfp.distributions

_SHRINKAGES = np.geomspace(1e-4, 1.0, 17)
_STEPS_PER_VALIDATION = 50
_MAX_HELD_OUT = 4_096
_CHUNK_SIZE = 8_192
# Numbers with more values than this, in few rows each, are measurements and no labels.
_MAX_SMALL_CLASSES, _MIN_ROWS_PER_CLASS = 10, 5
# Models are shared by all estimators of a process, see `_shared_model`.
_LOCK = threading.Lock()


class FlowDensity(ClassifierMixin, BaseEstimator):
    r"""Density of the rows of a table, by Real NVP, as an estimator of scikit-learn.

    `fit(X)` estimates p(x), an equal mixture of flows. Each flow holds out another part of the rows
    to stop early, so that all rows are learned from. `fit(X, y)` estimates p(x | y), a mixture for
    each class y. `predict` then applies Bayes' rule, with the frequencies of the classes as p(y),
    and `score_samples` gives p(x) = Σ p(x | y) p(y).

    The estimator is for tables of tens to ten thousands of rows, whose columns can have any units:

    *   A flow starts as Student t distributions with the covariance of its rows, and learns what
        is different. The covariance is shrunk towards that of independent columns, by the factor
        that gives held-out rows the highest likelihood.
    *   In each step of the training, rows get normal noise anew. Where columns have been rounded,
        they also get uniform noise of the width of the rounding: the density of a rounded number
        has no upper bound. `score_samples` is the density at the rows as they are.
    *   Without scikit-learn, with a condition, or for millions of rows, use `RealNVPVector` and
        `FlowModel` directly.

    All computations are in float64. The estimator can be cloned and pickled, and works in
    `Pipeline`, `GridSearchCV` and `cross_val_score`, which rank by `score`: the mean log density of
    rows. `scoring='accuracy'` ranks by predicted labels.

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
    Lakshminarayanan, Pritzel, Blundell: Simple and scalable predictive uncertainty estimation using
    deep ensembles, 2017, section 2.4, for the mixture.
    """

    def __init__(
        self,
        num_flows: int = 5,
        *,
        num_couplings: int = 4,
        num_blocks: int = 1,
        num_filters: int = 32,
        transformer: Any = "affine",
        degrees_of_freedom: float = 8.0,
        noise: float = 0.3,
        dequantize: bool = True,
        max_steps: int = 2_000,
        patience: int = 5,
        learning_rate: float = 3e-4,
        batch_size: int = 64,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        """Constructs the estimator; `fit` checks the arguments.

        Args:
          num_flows: flows of a mixture, at least 2. Each holds out a share 1 / num_flows of rows.
          num_couplings: couplings of a flow, as in `RealNVPVector`.
          num_blocks: residual blocks of each network.
          num_filters: units of each layer of the networks.
          transformer: transformer of the couplings, as in `RealNVPVector`.
          degrees_of_freedom: of the Student t distribution of the latents. A row far from all
            others is then not impossible.
          noise: standard deviation of the noise in training, where that of the rows is 1.
          dequantize: whether rounded columns get noise in training. A column counts as rounded to
            the number of decimals, at most 8, that half of its values need.
          max_steps: largest number of training steps of each flow.
          patience: number of validations without improvement, one each 50 steps, after which the
            training of a flow ends. The weights are those of the best validation, or those of the
            start if that is not better by a standard error.
          learning_rate: learning rate of Adam.
          batch_size: rows in a training step, which are drawn with replacement.
          random_state: as in scikit-learn: an integer gives reproducible results.
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
          The estimator. Its attribute `rounding_widths_` [D] has the widths of the noise of rounded
          columns. With labels, `classes_` has the classes in ascending order, and `class_prior_`
          their frequencies.

        Raises:
          ValueError: if rows, labels or weights are not as above, or an argument of the constructor
            is out of range.
        """
        self._check_arguments()
        self.__dict__.pop("classes_", None)
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
        # In the type of the rows: as float64, float32 numbers have no few decimals.
        self.rounding_widths_ = widths = self.dequantize * weighted_rows.rounding_widths(
            rows, weights
        )
        rows = rows.astype(np.float64)
        scale = weighted_rows.column_scales(rows, weights, widths, "FlowDensity")
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))
        self.class_prior_ = np.bincount(groups, weights) / weights.sum()
        self._mixtures = [
            self._fit_mixture(
                Rows(rows[groups == group], weights[groups == group]), widths, scale, rng
            )
            for group in range(len(self.class_prior_))
        ]
        return self

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
        """Returns random rows, without the rounding of the columns.

        Args:
          n_samples: number of rows N, at least 1.
          y: the class from which to sample, or `None` for p(x).
          random_state: as in scikit-learn.

        Returns:
          Rows [N, D], float64; after a fit to a `DataFrame`, one with the same columns.

        Raises:
          ValueError: if `y` is none of the classes, or `n_samples` is less than 1.
        """
        check_is_fitted(self)
        n_samples = validation.integer(
            n_samples, 1, "FlowDensity: expected n_samples of at least 1"
        )
        rng = np.random.default_rng(check_random_state(random_state).randint(2**31 - 1))
        groups = list(range(len(self._mixtures))) if y is None else [self._class_index(y)]
        flows = [flow for group in groups for flow in self._mixtures[group]]
        sizes = [len(self._mixtures[group]) for group in groups]
        weights = np.repeat(self.class_prior_[groups] / sizes, sizes)
        counts = rng.multinomial(n_samples, weights / weights.sum())
        with _LOCK:
            rows = [
                flow.sample(self._model(), count, rng.integers(2**31, size=2))
                for flow, count in zip(flows, counts, strict=True)
                if count
            ]
        rows = rng.permutation(np.concatenate(rows))
        if not hasattr(self, "feature_names_in_"):
            return rows
        return _data_frame(rows, self.feature_names_in_)

    def _check_arguments(self) -> None:
        for name, least in (("num_flows", 2), ("max_steps", 1), ("patience", 1), ("batch_size", 1)):
            value = getattr(self, name)
            validation.integer(value, least, f"FlowDensity: expected {name} of at least {least}")
        validation.finite(self.noise, 0, "FlowDensity: expected noise of at least 0")
        for name in ("degrees_of_freedom", "learning_rate"):
            validation.positive(getattr(self, name), f"FlowDensity: expected a positive {name}")
        validation.flag(self.dequantize, "FlowDensity: expected a bool as dequantize")

    def _checked_rows(self, X: Any, y: Any = None, **options: Any) -> tuple[np.ndarray, Any]:
        """Returns rows, float32 or float64, and labels, by the checks of scikit-learn."""
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

    def _model(self) -> _SharedModel:
        return _shared_model(
            self.n_features_in_,
            self.degrees_of_freedom,
            self.learning_rate,
            # To compile takes as long as hundreds of steps.
            jit_compile=self.max_steps > 4 * _STEPS_PER_VALIDATION,
            num_couplings=self.num_couplings,
            num_blocks=self.num_blocks,
            num_filters=self.num_filters,
            transformer=self.transformer,
        )

    def _joint_log_probs(self, X: Any) -> np.ndarray:
        """Returns log p(x, y) of each row and class, [N, number of classes]."""
        check_is_fitted(self)
        rows, _ = self._checked_rows(X, reset=False)
        rows = rows.astype(np.float64)
        with _LOCK:
            log_probs = [
                np.logaddexp.reduce([flow.log_prob(self._model(), rows) for flow in mixture])
                - math.log(len(mixture))
                for mixture in self._mixtures
            ]
        return np.stack(log_probs, axis=1) + np.log(self.class_prior_)

    def _fit_mixture(
        self, rows: Rows, widths: np.ndarray, scale: np.ndarray, rng: np.random.Generator
    ) -> list[_Flow]:
        """Returns the flows of a class, each with another part of its rows held out."""
        folds = weighted_rows.fold_weights(rows.weights, self.num_flows, rng)
        # A single row is not held out.
        learned = rows.weights - folds if len(folds) > 1 else folds
        splits = [
            (rows.with_weights(learned[i]), rows.with_weights(folds[i])) for i in range(len(folds))
        ]
        starts = _student_t_starts(splits, widths, scale, self.degrees_of_freedom, rng)
        with _LOCK:
            return [
                self._fit_flow(start, *split, widths, flow_rng)
                for start, split, flow_rng in zip(
                    starts, splits, rng.spawn(len(splits)), strict=True
                )
            ]

    def _fit_flow(
        self, start: _Flow, rows: Rows, held_out: Rows, widths: np.ndarray, rng: np.random.Generator
    ) -> _Flow:
        """Returns a flow trained on rows until its log density of held-out ones is highest.

        If that is not higher than at the start by more than a standard error, it returns the start:
        the best of many validations on a few rows is high by chance.
        """
        model = self._model()
        num_steps = min(_STEPS_PER_VALIDATION, self.max_steps)
        model.reset()
        # The rows are in order, so that a part of them is spread evenly.
        held_out = Rows(*(array[:: -(-len(array) // _MAX_HELD_OUT)] for array in held_out))
        best = start = dataclasses.replace(start, weights=model.keras_model.get_weights())
        start_log_probs = start.log_prob(model, held_out.values)
        best_lead, best_error, num_worse = 0.0, 0.0, 0
        for _ in range(0, self.max_steps, num_steps):
            batches = rows.draw([num_steps, self.batch_size], rng)
            batches = start.latents(batches + widths * rng.uniform(-0.5, 0.5, batches.shape))
            model.train(batches + self.noise * rng.normal(size=batches.shape))
            trained = dataclasses.replace(start, weights=model.keras_model.get_weights())
            lead, error = held_out.mean_and_error(
                trained.log_prob(model, held_out.values) - start_log_probs
            )
            if lead > best_lead:
                best, best_lead, best_error, num_worse = trained, lead, error, 0
            elif (num_worse := num_worse + 1) >= self.patience:
                break
        return best if best_lead > best_error else start


@dataclasses.dataclass(frozen=True)
class _Flow:
    """A flow after an affine map, `latents = (rows - mean) matrix`, as arrays that can be pickled.

    Attributes:
      mean: [D].
      matrix: [D, D].
      log_det: log |det matrix|.
      weights: those of the model.
    """

    mean: np.ndarray
    matrix: np.ndarray
    log_det: float
    weights: list[np.ndarray] = dataclasses.field(default_factory=list)

    def latents(self, rows: np.ndarray) -> np.ndarray:
        return (rows - self.mean) @ self.matrix

    def log_prob(self, model: _SharedModel, rows: np.ndarray) -> np.ndarray:
        """Returns the log density of rows, [N]."""
        model.keras_model.set_weights(self.weights)
        chunks = [rows[i : i + _CHUNK_SIZE] for i in range(0, len(rows), _CHUNK_SIZE)]
        log_probs = [model.log_prob(self.latents(chunk)).numpy() for chunk in chunks]
        return np.concatenate(log_probs) + self.log_det

    def sample(self, model: _SharedModel, count: int, seed: np.ndarray) -> np.ndarray:
        """Returns random rows, [count, D]."""
        model.keras_model.set_weights(self.weights)
        latents = model.keras_model.distribution.sample(count, seed=seed.astype(np.int32)).numpy()
        return latents @ np.linalg.inv(self.matrix) + self.mean


class _SharedModel:
    """A compiled model, to which flows of one architecture lend their weights in turn.

    Its tensors go directly to `FlowModel.train_step`, since the pipelines of `FlowModel.fit` take
    longer to set up than a few rows take to train.
    """

    def __init__(
        self, size: int, df: float, learning_rate: float, jit_compile: bool, **architecture: Any
    ) -> None:
        dtype = tf.float64
        df, mean, stddev = (tf.constant(value, dtype) for value in (df, 0.0, 1.0))
        base = tfd.Sample(tfd.StudentT(df, mean, stddev), [size])
        flow = RealNVPVector(size, **architecture, normalization=None, dtype=dtype)
        model = FlowModel(tfd.TransformedDistribution(base, flow))
        model.compile(FusedAdam(learning_rate, global_clipnorm=10.0))
        model.build_optimizer()
        self.keras_model = model
        self.log_prob = tf.function(
            model.distribution.log_prob, input_signature=[tf.TensorSpec([None, size], dtype)]
        )

        batches_spec = tf.TensorSpec([None, None, size], dtype)
        # AutoGraph is for the loop alone.
        train_step = tf.autograph.experimental.do_not_convert(model.train_step)

        @tf.function(input_signature=[batches_spec], jit_compile=jit_compile)
        def train(batches: tf.Tensor) -> None:
            for batch in batches:
                train_step(batch)

        self.train = train
        variables = [*model.variables, *model.optimizer.variables]
        self._initial_values = [(variable, variable.numpy()) for variable in variables]

    def reset(self) -> None:
        """Returns weights and optimizer to where they were before any training."""
        for variable, value in self._initial_values:
            variable.assign(value)


@functools.lru_cache(maxsize=16)
def _shared_model(*args: Any, **kwargs: Any) -> _SharedModel:
    """Returns the model of an architecture, traced once in a process for all flows and clones."""
    state = random.getstate()
    random.seed(0)  # Keras draws the seeds of initial weights from this generator
    try:
        return _SharedModel(*args, **kwargs)
    finally:
        random.setstate(state)


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


def _data_frame(rows: np.ndarray, columns: np.ndarray) -> Any:
    """Returns rows as a `DataFrame`, or as they are without pandas."""
    try:
        import pandas as pd
    except ImportError:
        return rows
    return pd.DataFrame(rows, columns=columns)


def _student_t_starts(
    splits: list[tuple[Rows, Rows]],
    widths: np.ndarray,
    scale: np.ndarray,
    df: float,
    rng: np.random.Generator,
) -> list[_Flow]:
    """Returns for each split the affine map that gives training rows the identity as covariance.

    In columns that are divided by `scale`, the covariance C of the rows with uniform noise becomes
    (1 - a) C + a I, with the factor a for which held-out rows are most probable. A random rotation
    follows, so that flows differ.
    """
    means, variances, axes = [], [], []
    log_likelihoods = np.zeros(len(_SHRINKAGES))
    for train, held_out in splits:
        mean, covariance = Rows(train.values / scale, train.weights).covariance()
        eigen = np.linalg.eigh(covariance + np.diag((widths / scale) ** 2 / 12))
        means.append(mean)
        variances.append(eigen[0].clip(min=0.0))
        axes.append(eigen[1])
        squares = ((held_out.values / scale - mean) @ axes[-1]) ** 2
        for i, shrinkage in enumerate(_SHRINKAGES):
            shrunk = (1 - shrinkage) * variances[-1] + shrinkage
            log_prob = -(df + 1) / 2 * np.log1p(squares / shrunk / df) - np.log(shrunk) / 2
            log_likelihoods[i] += held_out.weights @ log_prob.sum(axis=1)
    # A single row is not held out, and says nothing about the covariance.
    shrinkage = _SHRINKAGES[log_likelihoods.argmax()] if len(splits) > 1 else 1.0
    starts = []
    for mean, variance, axis in zip(means, variances, axes, strict=True):
        stddev = np.sqrt((1 - shrinkage) * variance + shrinkage)
        rotation = np.linalg.qr(rng.normal(size=axis.shape))[0]
        matrix = axis / scale[:, np.newaxis] / stddev @ rotation
        log_det = -np.log(stddev).sum() - np.log(scale).sum()
        starts.append(_Flow(mean * scale, matrix, log_det))
    return starts
