# %% [markdown]
# # Tables: densities, outliers, p(y | x)
#
# A row of a table is a vector, and `RealNVPVector` is a flow of vectors. In this tutorial you will
#
# * learn the density of the rows of a small table without overfitting,
# * compose the flow with bijectors of TensorFlow Probability,
# * compare it with a normal distribution on unseen rows,
# * plot samples next to rows,
# * detect malignant tumors by the density of benign ones,
# * learn p(y | x), the distribution of a number given other numbers, which can have any shape,
# * compare it with linear regression with normal errors.
#
# The tables come with scikit-learn. The tutorial takes two minutes on two processor cores.

# %%
import os

import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import KFold, train_test_split

import tfp_realnvp as tfr

tfb = tfp.bijectors
tfd = tfp.distributions

SHORT = bool(os.environ.get("TUTORIALS_SHORT"))  # set by the tests: few epochs
keras.utils.set_random_seed(0)
tf.get_logger().setLevel("ERROR")  # TensorFlow warns of the traces of several models

# %% [markdown]
# ## A table
#
# The table has thirty measurements of cell nuclei in breast tissue, of 357 benign and 212 malignant
# cases. We learn the density of benign cases only. We hold out some benign cases for the test, and
# other cases to decide when to stop training.

# %%
table = load_breast_cancer()
rows = table.data.astype(np.float32)
benign, malignant = rows[table.target == 1], rows[table.target == 0]
train, test = train_test_split(benign, test_size=0.3, random_state=0)
fitted, held_out = train_test_split(train, test_size=0.2, random_state=0)
num_columns = rows.shape[1]
print(len(fitted), "rows to fit,", len(held_out), "to stop,", len(test), "to test")

# %% [markdown]
# Our baseline is the normal distribution with the mean and covariance of the rows. The columns have
# very different units and are strongly correlated, so the covariance matrix needs float64.

# %%
mean = train.mean(axis=0, dtype=np.float64)
cholesky = np.linalg.cholesky(np.cov(train.T.astype(np.float64)))
normal = tfd.MultivariateNormalTriL(mean, cholesky)
normal_log_probs = normal.log_prob(test.astype(np.float64)).numpy()
print(f"normal distribution: {normal_log_probs.mean():.2f} nats a test row")

# %% [markdown]
# ## The flow
#
# The flow need not learn the mean and covariance of the rows, because we can compute both. In a
# chain, two bijectors of TFP map standardized, uncorrelated vectors to rows, and the flow maps
# latents to such vectors. `RealNVPVector` starts as a random orthogonal map, so the chain starts
# with the mean and the covariance of the rows. The flow then learns only what the mean and
# covariance do not describe. The density of the chain refers to rows in their original units.
#
# A flow can overfit two hundred rows. To prevent this, we use small networks and a Student t base
# distribution. With its heavy tails, a row far from all other rows is unlikely, but not impossible.

# %%
fitted_mean = fitted.mean(axis=0)
fitted_cholesky = np.linalg.cholesky(np.cov(fitted.T.astype(np.float64))).astype(np.float32)
flow = tfd.TransformedDistribution(
    tfd.Sample(tfd.StudentT(8.0, 0.0, 1.0), [num_columns]),
    tfb.Chain(
        [
            tfb.Shift(fitted_mean),
            tfb.ScaleMatvecTriL(fitted_cholesky),
            tfr.RealNVPVector(num_columns, num_couplings=4, num_blocks=1, num_filters=32),
        ]
    ),
)

# %% [markdown]
# Two more steps reduce overfitting. We copy each row twenty times and add normal noise to each
# copy. The noise has the correlations of the rows and 0.3 times their standard deviations. We stop
# training when the loss on held-out rows no longer falls.
#
# For vectors the loss is $-\log p$ in nats. `tfr.log_prob` scores rows in batches.


# %%
def with_noise(rows, cholesky, num_copies, scale=0.3):
    """Returns copies of rows plus normal noise that is correlated like the rows."""
    copies = np.tile(rows, [num_copies, 1])
    noise = np.random.default_rng(0).normal(size=copies.shape)
    return (copies + scale * noise @ cholesky.T).astype(np.float32)


model = tfr.FlowModel(flow)
before = tfr.log_prob(model, test).mean()
model.compile(tfr.FusedAdam(3e-4, global_clipnorm=10.0))
model.fit(
    with_noise(fitted, fitted_cholesky, num_copies=20),
    batch_size=64,
    epochs=2 if SHORT else 20,
    validation_data=held_out,
    callbacks=[keras.callbacks.EarlyStopping(patience=4, restore_best_weights=True)],
    verbose=2,
)

# %% [markdown]
# Both densities score the same rows, so we compute the standard error of the difference of their
# log densities.

# %%
log_probs = tfr.log_prob(model, test)
lead = log_probs - normal_log_probs
lead_error = lead.std() / np.sqrt(len(lead))
print(f"flow: {log_probs.mean():.2f} nats a test row, before training {before:.2f}")
print(f"more than the normal distribution: {lead.mean():.2f} ± {lead_error:.2f} nats")

# %% [markdown]
# The full run measured a mean log density of 43.34 nats for the normal distribution and 47.05 for
# the flow, a difference of 3.71 ± 0.74. The Student t base distribution contributes one nat to the
# difference: before training, the mean log density of the flow is 44.29 nats.

# %%
assert lead.mean() > 2 * lead_error
assert log_probs.mean() > before + 1.0

# %% [markdown]
# `tfr.FlowDensity`, a scikit-learn estimator, does all of this in one call, and also mixes the
# flows with simpler densities, such as mixtures of normal distributions. By five-fold
# cross-validation, `FlowDensity` fits each kind of density five times and mixes the five fits, so
# all rows contribute. The held-out rows determine the mixture weights. `examples/train_table.py`
# compares `FlowDensity` with other density estimators.

# %%
density = tfr.FlowDensity(random_state=0).fit(train[:100] if SHORT else train)  # 100: no flows
print(f"FlowDensity: {density.score(test):.2f} nats a test row")
assert SHORT or density.score(test) > log_probs.mean()

# %% [markdown]
# The full run measured a mean log density of 49.3 nats, two nats more than for the flow alone.
#
# `tfr.plots.pairs` shows what a density has learned: samples beside test rows, here the radius,
# texture, perimeter and area of nuclei. Circles mark the rows of the lowest density.

# %%
tfr.plots.pairs(density, test, columns=[0, 1, 2, 3])

# %% [markdown]
# ## Outliers
#
# A density that has seen only benign cases gives malignant cases low densities. The area under the
# ROC curve is the probability that a malignant case is less likely than a benign case.

# %%
malignant_log_probs = tfr.log_prob(model, malignant)
is_malignant = np.repeat([0, 1], [len(test), len(malignant)])
scores = {
    "flow": -np.concatenate([log_probs, malignant_log_probs]),
    "normal distribution": -np.concatenate(
        [normal_log_probs, normal.log_prob(malignant.astype(np.float64))]
    ),
}
auroc = {name: roc_auc_score(is_malignant, score) for name, score in scores.items()}
print("area under the ROC curve:", {name: round(float(area), 4) for name, area in auroc.items()})

plt.figure(figsize=(4, 4), layout="constrained")
for name, score in scores.items():
    plt.plot(*roc_curve(is_malignant, score)[:2], label=f"{name}, {auroc[name]:.3f}")
plt.xlabel("share of benign cases reported")
plt.ylabel("share of malignant cases found")
plt.legend()
plt.show()

# %% [markdown]
# The full run measured areas of 0.975 for the flow and 0.976 for the normal distribution, so both
# detect equally well: a better density is not always a better detector. Try the normal distribution
# first.

# %%
assert auroc["flow"] > 0.95, auroc

# %% [markdown]
# ## The distribution of a number given other numbers
#
# The diabetes table has ten measurements x of 442 patients, and y, the progression of the disease
# in a year. Linear regression with normal errors is a density p(y | x): its mean is a linear
# function of x, and its standard deviation is constant. In this table, however, the errors grow
# with the mean and are not symmetric.
#
# A conditional flow of one number can have a density of any shape: with
# `transformer="rational_quadratic_spline"` the number passes through splines that depend on the
# condition. A few hundred rows are too few to learn everything at once, so the regression predicts
# the mean from the ten measurements, and the flow takes this prediction as its condition. For
# vectors, `compile()` uses Adam by default, with a learning rate that decays to zero along a cosine
# until the end of `fit`.

# %%
x, y = load_diabetes(return_X_y=True)
x, y = x.astype(np.float32), y.astype(np.float32)[:, np.newaxis]


def fit_regression(x, y):
    """Returns a linear regression and the standard deviation of its errors."""
    regression = LinearRegression().fit(x, y)
    errors = y - regression.predict(x)
    return regression, np.sqrt(np.sum(errors**2) / (len(x) - x.shape[1] - 1))


def fit_conditional_flow(predictions, y, epochs):
    """Returns a model of p(y | prediction)."""
    keras.utils.set_random_seed(0)
    bijector = tfr.RealNVPVector(
        1,
        num_couplings=2,
        num_blocks=1,
        num_filters=16,
        embedding_size=16,
        transformer="rational_quadratic_spline",
        conditional_event_shape=[1],
        standardization=tfr.Standardization.of(y),
    )
    base = tfd.Sample(tfd.Normal(0.0, 1.0), [1])
    model = tfr.FlowModel(tfd.TransformedDistribution(base, bijector))
    model.compile()
    scale = y.std() * np.ones([1, 1])
    model.fit(
        with_noise(y, scale, num_copies=20, scale=0.1),
        np.tile(predictions, [20, 1]),
        batch_size=64,
        epochs=epochs,
        verbose=0,
    )
    return model


# %% [markdown]
# We use cross-validation: for each patient, a regression and a flow that were fitted to other
# patients predict y. We also standardize the condition, since networks learn better from values
# near one.

# %%
linear_log_probs, flow_log_probs, levels = (np.zeros(len(y)) for _ in range(3))
folds = list(KFold(3, shuffle=True, random_state=0).split(x))
for train_rows, test_rows in folds[:1] if SHORT else folds:
    regression, deviation = fit_regression(x[train_rows], y[train_rows])

    def condition_of(x, regression=regression, y=y[train_rows]):
        return ((regression.predict(x) - y.mean()) / y.std()).astype(np.float32)

    model = fit_conditional_flow(
        condition_of(x[train_rows]), y[train_rows], epochs=2 if SHORT else 8
    )
    x_test, y_test = x[test_rows], y[test_rows]
    linear = tfd.Normal(regression.predict(x_test), deviation)
    linear_log_probs[test_rows] = linear.log_prob(y_test)[:, 0]
    flow_log_probs[test_rows] = tfr.log_prob(model, y_test, condition_of(x_test))
    # If the distribution is right, the fraction of samples of p(y | x) below y is uniform.
    samples = tfr.condition(model.distribution, condition_of(x_test)).sample(1_000, seed=(0, 1))
    levels[test_rows] = np.mean(samples < y_test, axis=0)[:, 0]

is_tested = flow_log_probs != 0
lead = (flow_log_probs - linear_log_probs)[is_tested]
lead_error = lead.std() / np.sqrt(len(lead))
print(f"linear regression, normal errors {linear_log_probs[is_tested].mean():.3f} nats a patient")
print(f"flow                             {flow_log_probs[is_tested].mean():.3f} nats a patient")
print(f"more                             {lead.mean():.3f} ± {lead_error:.3f} nats")

# %% [markdown]
# Is the distribution calibrated? About 90% of the patients should have y in the 90% interval of p(y
# | x), between the levels 0.05 and 0.95 of the samples.

# %%
coverage = np.mean((levels > 0.05) & (levels < 0.95), where=is_tested)
print(f"90% intervals contain {coverage:.1%} of {is_tested.sum()} values")

# %% [markdown]
# The full run measured a mean log p(y | x) of -5.422 nats for the regression and -5.344 for the
# flow, a difference of 0.078 ± 0.021; 88.2% of the values lie in their intervals. In another run,
# we conditioned a flow on all ten measurements. That flow was no better than the regression: 265
# rows were too few.

# %%
assert abs(coverage - 0.9) < (0.08 if SHORT else 0.05), coverage
assert SHORT or lead.mean() > 2 * lead_error, lead.mean()

# %% [markdown]
# The densities for a low, a middle and a high prediction show what the flow has learned.

# %%
axis = np.linspace(0, 400, 200, dtype=np.float32)
plt.figure(figsize=(6, 3.5), layout="constrained")
for value, color in ((-1.0, "C0"), (0.0, "C1"), (1.0, "C2")):
    prediction = y[train_rows].mean() + value * y[train_rows].std()
    given = tfr.condition(model.distribution, np.float32([value]))
    plt.plot(axis, given.prob(axis[:, np.newaxis]), color, label=f"prediction {prediction:.0f}")
    plt.plot(axis, tfd.Normal(prediction, deviation).prob(axis), color, linestyle=":")
plt.xlabel("progression of the disease; dotted: normal errors")
plt.ylabel("p(y | prediction)")
plt.legend()
plt.show()

given = tfr.condition(model.distribution, np.float32([0.0]))
wide = np.linspace(-400, 900, 4_000, dtype=np.float32)
integral = np.trapezoid(given.prob(wide[:, np.newaxis]), wide)
print(f"integral of a density: {integral:.4f}")
assert abs(integral - 1) < 0.01

# %% [markdown]
# `tfr.FlowRegressor`, a scikit-learn estimator, models p(y | x) in one call, given all ten
# measurements. `FlowRegressor` mixes a linear regression with Student t errors, mixtures of normal
# distributions, boosted trees and flows, weighted by the likelihood of held-out patients. The
# result should be at least about as good as the regression, and better where the data are not
# linear with normal errors.

# %%
train_rows, test_rows = folds[0]
regressor = tfr.FlowRegressor(max_steps=50 if SHORT else 2_000, random_state=0)
regressor.fit(x[train_rows], y[train_rows, 0])
log_probs = regressor.score_samples(x[test_rows], y[test_rows, 0])
low, high = regressor.predict_interval(x[test_rows], 0.9)
coverage = np.mean((low < y[test_rows, 0]) & (y[test_rows, 0] < high))
print(f"FlowRegressor     {log_probs.mean():.3f} nats a patient of the first fold")
print(f"linear regression {linear_log_probs[test_rows].mean():.3f}")
print(f"flow              {flow_log_probs[test_rows].mean():.3f}")
print(f"90% intervals contain {coverage:.1%} of {len(test_rows)} values")
assert log_probs.mean() > linear_log_probs[test_rows].mean() - 0.05
assert abs(coverage - 0.9) < 0.08, coverage
