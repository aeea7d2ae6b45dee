"""Other density estimators of tables with their defaults, fitted in the time of `tfr.FlowDensity`.

An estimator is a function that takes training rows, a seed and a time in seconds, and returns a
function from rows [N, D] to log densities [N]. Columns are standardized.

* `mixture`: scikit-learn's `GaussianMixture` with full or diagonal covariances and 1 to 20
  components, selected by BIC, with at least D + 1 rows (full) or 4 rows (diagonal) per component.
  Otherwise BIC can select components of a few rows, and other rows get almost no density.
* `kernels`: `KernelDensity` of scikit-learn with normal kernels. Cross-validation on at most 5,000
  rows selects the bandwidth. For more rows, the bandwidth shrinks by Scott's rule.
* `zuko NSF`: a neural spline flow of zuko, as in its README: three transforms, networks of three
  layers of 128 units, Adam with a learning rate of 1e-3, batches of 256 rows.
* `pzflow`: the default bijector, optimizer and batches of pzflow, with standardized columns, at
  least two, and `Normal` latents. The default latents of pzflow are bounded: rows beyond the bounds
  would have density 0.

zuko and pzflow train for the given seconds, including compilation. They keep the weights that are
best on a held-out fifth of the rows, and stop after 1,000 steps (zuko) or 100 epochs (pzflow)
without improvement. zuko uses one thread, which is faster for such small networks.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold, train_test_split
from sklearn.neighbors import KernelDensity

__all__ = ["PEERS", "installed_peers"]

_NUM_COMPONENTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)
_BANDWIDTHS = np.geomspace(0.02, 1.5, 15)
_MAX_ROWS_OF_BANDWIDTHS = 5_000
_HELD_OUT = 0.2
_BATCH_SIZE, _STEPS_PER_VALIDATION, _PATIENCE = 256, 50, 20
_MAX_EPOCHS, _PATIENCE_EPOCHS = 1_000_000, 100

LogProb = Callable[[np.ndarray], np.ndarray]


def mixture(rows: np.ndarray, seed: int, seconds: float) -> LogProb:
    """Returns the mixture of normal distributions with the lowest BIC."""
    del seconds
    size = {"full": rows.shape[1] + 1, "diag": 4}
    models = [
        GaussianMixture(number, covariance_type=kind, random_state=seed).fit(rows)
        for number in _NUM_COMPONENTS
        for kind in ("full", "diag")
        if number == 1 or number * size[kind] <= len(rows)
    ]
    return min(models, key=lambda model: model.bic(rows)).score_samples


def kernels(rows: np.ndarray, seed: int, seconds: float) -> LogProb:
    """Returns a kernel density estimate with the bandwidth that is best on held-out rows."""
    del seconds
    part = rows[:_MAX_ROWS_OF_BANDWIDTHS]
    folds = list(KFold(5, shuffle=True, random_state=seed).split(part))
    scores = [
        sum(KernelDensity(bandwidth=width).fit(part[i]).score(part[j]) for i, j in folds)
        for width in _BANDWIDTHS
    ]
    scott = (len(part) / len(rows)) ** (1 / (rows.shape[1] + 4))
    width = _BANDWIDTHS[np.argmax(scores)] * scott
    return KernelDensity(bandwidth=width).fit(rows).score_samples


def zuko_nsf(rows: np.ndarray, seed: int, seconds: float) -> LogProb:
    """Returns a neural spline flow of zuko."""
    import torch
    import zuko

    start = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    flow = zuko.flows.NSF(rows.shape[1], transforms=3, hidden_features=[128] * 3)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    learned, held_out = (
        torch.as_tensor(part, dtype=torch.float32)
        for part in train_test_split(rows, test_size=_HELD_OUT, random_state=seed)
    )
    best, best_loss, wait = flow.state_dict(), np.inf, 0
    while wait < _PATIENCE and time.perf_counter() - start < seconds:
        for _ in range(_STEPS_PER_VALIDATION):
            batch = learned[torch.randint(len(learned), [_BATCH_SIZE])]
            loss = -flow().log_prob(batch).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            loss = -flow().log_prob(held_out).mean().item()
        wait += 1
        if loss < best_loss:
            best, best_loss, wait = copy.deepcopy(flow.state_dict()), loss, 0
    flow.load_state_dict(best)

    def log_prob(rows: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return flow().log_prob(torch.as_tensor(rows, dtype=torch.float32)).double().numpy()

    return log_prob


def pzflow(rows: np.ndarray, seed: int, seconds: float) -> LogProb:
    """Returns a flow of pzflow."""
    import jax
    import jax.numpy as jnp
    import pandas as pd
    from pzflow import Flow
    from pzflow.bijectors import RollingSplineCoupling
    from pzflow.distributions import Normal

    names = [f"x{i}" for i in range(rows.shape[1])]
    frame = functools.partial(pd.DataFrame, columns=names)
    learned, held_out = train_test_split(rows, test_size=_HELD_OUT, random_state=seed)
    end = time.perf_counter() + seconds
    flow = Flow(names, RollingSplineCoupling(len(names)), latent=Normal(len(names)), seed=seed)

    @jax.jit
    def loss(params: Any, x: Any, condition: Any, weights: Any) -> Any:
        return -jnp.mean(weights * flow._log_prob(params, x, condition))

    def loss_until_end(*arguments: Any) -> Any:
        # Infinity ends the training after this epoch, with the best weights so far.
        return loss(*arguments) if time.perf_counter() < end else jnp.array(jnp.inf)

    with contextlib.redirect_stdout(None):
        flow.train(
            frame(learned),
            frame(held_out),
            epochs=_MAX_EPOCHS,
            loss_fn=loss_until_end,
            patience=_PATIENCE_EPOCHS,
            seed=seed,
        )
    return lambda rows: np.asarray(flow.log_prob(frame(rows)), np.float64)


PEERS = {"mixture": mixture, "kernels": kernels, "zuko NSF": zuko_nsf, "pzflow": pzflow}


def installed_peers() -> list[str]:
    """Returns the names of the peers whose package is installed."""
    package = {"zuko NSF": "zuko", "pzflow": "pzflow"}
    return [name for name in PEERS if importlib.util.find_spec(package.get(name, "sklearn"))]
