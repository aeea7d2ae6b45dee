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
from tfp_realnvp.internal import private_api, validation
from tfp_realnvp.internal.optional_packages import missing_package
from tfp_realnvp.training.flow_model import FlowModel
from tfp_realnvp.training.optimizers import FusedAdam

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.model_selection import KFold
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise missing_package("FlowDensity", "scikit-learn") from error

__all__ = ["FlowDensity"]

tfd = tfp.distributions

_MAX_DECIMALS = 9
_SHRINKAGES = np.geomspace(1e-4, 1.0, 17)
_STEPS_PER_VALIDATION = 50
_MAX_HELD_OUT = 4_096
_CHUNK_SIZE = 8_192
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

    def fit(self, X: Any, y: Any = None) -> FlowDensity:
        """Estimates p(x), or with labels p(x | y) and p(y).

        Args:
          X: rows [N, D] of finite numbers, with N at least 2.
          y: labels [N] of classes, or `None`.

        Returns:
          The estimator. Its attribute `rounding_widths_` [D] has the widths of the noise of rounded
          columns. With labels, `classes_` has the classes in ascending order, and `class_prior_`
          their frequencies.

        Raises:
          ValueError: if rows or labels are not as above, or an argument of the constructor is out
            of range.
        """
        self._check_arguments()
        self.__dict__.pop("classes_", None)
        options = {"dtype": [np.float64, np.float32], "ensure_min_samples": 2}
        if y is None:
            rows = private_api.validate_data(self, X, **options)
            groups = np.zeros(len(rows), int)
        else:
            rows, y = private_api.validate_data(self, X, y, **options)
            check_classification_targets(y)
            self.classes_, groups = np.unique(y, return_inverse=True)
        # In the type of the rows: as float64, float32 numbers have no few decimals.
        self.rounding_widths_ = widths = _rounding_widths(rows) * self.dequantize
        rows = rows.astype(np.float64)
        scale = np.sqrt(rows.var(axis=0) + widths**2 / 12)
        scale = np.where(scale > 1e-12 * np.abs(rows).max(axis=0), scale, 1.0)
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31 - 1))
        self.class_prior_ = np.bincount(groups) / len(rows)
        self._mixtures = [
            self._fit_mixture(rows[groups == group], widths, scale, rng)
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

    def score(self, X: Any, y: Any = None) -> float:
        """Returns the mean log density of rows in nats, as scikit-learn's `GaussianMixture` does.

        It is the mean of log p(x). With labels, after `fit(X, y)`, it is that of log p(x | y).

        Args:
          X: rows [N, D].
          y: labels [N], or `None`. Without labels in `fit` they are ignored.

        Raises:
          ValueError: if a label is none of the classes.
        """
        if y is None or not hasattr(self, "classes_"):
            return float(self.score_samples(X).mean())
        log_probs = self._joint_log_probs(X) - np.log(self.class_prior_)
        groups = [self._class_index(label) for label in np.asarray(y).ravel().tolist()]
        return float(log_probs[np.arange(len(log_probs)), groups].mean())

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
    ) -> np.ndarray:
        """Returns random rows, without the rounding of the columns.

        Args:
          n_samples: number of rows N, at least 1.
          y: the class from which to sample, or `None` for p(x).
          random_state: as in scikit-learn.

        Returns:
          Rows [N, D], float64.

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
        return rng.permutation(np.concatenate(rows))

    def _check_arguments(self) -> None:
        for name, least in (("num_flows", 2), ("max_steps", 1), ("patience", 1), ("batch_size", 1)):
            value = getattr(self, name)
            validation.integer(value, least, f"FlowDensity: expected {name} of at least {least}")
        validation.finite(self.noise, 0, "FlowDensity: expected noise of at least 0")
        for name in ("degrees_of_freedom", "learning_rate"):
            validation.positive(getattr(self, name), f"FlowDensity: expected a positive {name}")
        validation.flag(self.dequantize, "FlowDensity: expected a bool as dequantize")

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
        rows = private_api.validate_data(self, X, reset=False, dtype=np.float64)
        with _LOCK:
            log_probs = [
                np.logaddexp.reduce([flow.log_prob(self._model(), rows) for flow in mixture])
                - math.log(len(mixture))
                for mixture in self._mixtures
            ]
        return np.stack(log_probs, axis=1) + np.log(self.class_prior_)

    def _fit_mixture(
        self, rows: np.ndarray, widths: np.ndarray, scale: np.ndarray, rng: np.random.Generator
    ) -> list[_Flow]:
        """Returns the flows of a class, each with another part of its rows held out."""
        rows = rng.permutation(rows)
        if len(rows) > 1:
            folds = KFold(min(self.num_flows, len(rows))).split(rows)
        else:
            folds = [([0], [0])]
        splits = [(rows[train], rows[held_out][:_MAX_HELD_OUT]) for train, held_out in folds]
        starts = _student_t_starts(splits, widths, scale, self.degrees_of_freedom, rng)
        with _LOCK:
            return [
                self._fit_flow(start, *split, widths, flow_rng)
                for start, split, flow_rng in zip(
                    starts, splits, rng.spawn(len(splits)), strict=True
                )
            ]

    def _fit_flow(
        self,
        start: _Flow,
        rows: np.ndarray,
        held_out: np.ndarray,
        widths: np.ndarray,
        rng: np.random.Generator,
    ) -> _Flow:
        """Returns a flow trained on rows until its log density of held-out ones is highest.

        If that is not higher than at the start by more than a standard error, it returns the start:
        the best of many validations on a few rows is high by chance.
        """
        model = self._model()
        num_steps = min(_STEPS_PER_VALIDATION, self.max_steps)
        model.reset()
        best = start = dataclasses.replace(start, weights=model.keras_model.get_weights())
        log_probs = best_log_probs = start.log_prob(model, held_out)
        num_worse = 0
        for _ in range(0, self.max_steps, num_steps):
            batches = rows[rng.integers(len(rows), size=[num_steps, self.batch_size])]
            batches = start.latents(batches + widths * rng.uniform(-0.5, 0.5, batches.shape))
            model.train(batches + self.noise * rng.normal(size=batches.shape))
            trained = dataclasses.replace(start, weights=model.keras_model.get_weights())
            trained_log_probs = trained.log_prob(model, held_out)
            if trained_log_probs.mean() > best_log_probs.mean():
                best, best_log_probs, num_worse = trained, trained_log_probs, 0
            elif (num_worse := num_worse + 1) >= self.patience:
                break
        lead = best_log_probs - log_probs
        return best if lead.mean() > lead.std() / math.sqrt(len(lead)) else start


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


def _rounding_widths(rows: np.ndarray) -> np.ndarray:
    """Returns the power of ten to which a column is rounded, by the median of its values, or 0."""
    decimals = np.full(rows.shape, _MAX_DECIMALS)
    for number in range(_MAX_DECIMALS - 1, -1, -1):
        decimals[np.round(rows, number) == rows] = number
    decimals = np.median(decimals, axis=0)
    return np.where(decimals < _MAX_DECIMALS, 10.0**-decimals, 0.0)


def _student_t_starts(
    splits: list[tuple[np.ndarray, np.ndarray]],
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
        mean = (train / scale).mean(axis=0)
        covariance = np.atleast_2d(np.cov((train / scale).T, ddof=0))
        eigen = np.linalg.eigh(covariance + np.diag((widths / scale) ** 2 / 12))
        means.append(mean)
        variances.append(eigen[0].clip(min=0.0))
        axes.append(eigen[1])
        squares = ((held_out / scale - mean) @ axes[-1]) ** 2
        for i, shrinkage in enumerate(_SHRINKAGES):
            shrunk = (1 - shrinkage) * variances[-1] + shrinkage
            log_prob = -(df + 1) / 2 * np.log1p(squares / shrunk / df) - np.log(shrunk) / 2
            log_likelihoods[i] += log_prob.sum()
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
