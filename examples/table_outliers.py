"""Detects rows of a table that do not belong to a class, and compares scikit-learn's detectors.

    python examples/table_outliers.py

`tfr.FlowOutlierDetector` learns one class of a table from half of its rows. It scores the other
half, and all rows of other classes, by -log p. The script prints areas under the ROC curve: the
probability that a row of another class scores higher than a row of the class, 0.5 for random
scores.

The density depends on the scale of a column: diameters and volumes of the same objects have
different densities, but the same ranks. Before training, the script therefore maps continuous
columns to standard normals by their ranks; `--noranks` omits this map.

The detectors of scikit-learn use default options. Local outlier factor (LOF), one-class SVM and
Gaussian mixture depend on the units of the columns, so they run on both the raw and the
standardized columns.

Some rows of the second half calibrate p-values, see `tfr.outliers.p_values`. The remaining rows of
this half are new: a new row with a p-value of at most `--alpha` is a false alarm.
"""

from __future__ import annotations

import os
import pathlib

# TensorFlow uses oneDNN by default only on processors with AVX-512 VNNI or AVX-VNNI instructions.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import matplotlib.figure
import numpy as np
from absl import app, flags
from sklearn import datasets
from sklearn.base import BaseEstimator
from sklearn.compose import make_column_transformer
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import QuantileTransformer, StandardScaler
from sklearn.svm import OneClassSVM

import tfp_realnvp as tfr
from tfp_realnvp import outliers

_TABLES = ("wine", "breast_cancer", "digits")

flags.DEFINE_multi_enum("table", list(_TABLES), [*_TABLES, "iris"], "Tables of scikit-learn.")
flags.DEFINE_float("alpha", 0.05, "Largest p-value to report.", lower_bound=0, upper_bound=1)
flags.DEFINE_integer("num_seeds", 5, "Splits of each class.", lower_bound=1)
flags.DEFINE_bool("ranks", True, "Map continuous columns to normals by their ranks for the flow.")
flags.DEFINE_integer("num_flows", 3, "Flows of a mixture.", lower_bound=2)
flags.DEFINE_integer("max_steps", 300, "Steps of training of each flow.", lower_bound=1)
flags.DEFINE_string("output_dir", "results/table_outliers", "Folder of the figure.")

FLAGS = flags.FLAGS

_DETECTORS = {
    "isolation forest": lambda seed: IsolationForest(random_state=seed),
    "LOF": lambda seed: LocalOutlierFactor(novelty=True),
    "LOF, std": lambda seed: standardized(LocalOutlierFactor(novelty=True)),
    "SVM": lambda seed: OneClassSVM(),
    "SVM, std": lambda seed: standardized(OneClassSVM()),
    "Gaussians": lambda seed: GaussianMixture(random_state=seed),
    "Gaussians, std": lambda seed: standardized(GaussianMixture(random_state=seed)),
    "Real NVP": lambda seed: flow(seed),
}


def main(argv: list[str]) -> None:
    del argv
    print_row("", [*_DETECTORS, "false alarms"])
    areas, alarms = {}, {}
    for table in FLAGS.table:
        data = getattr(datasets, f"load_{table}")()
        for label, label_name in enumerate(data.target_names):
            name = f"{table}, {label_name}"
            usual, unusual = data.data[data.target == label], data.data[data.target != label]
            results = [compare(usual, unusual, seed) for seed in range(FLAGS.num_seeds)]
            areas[name] = np.mean([seed_areas for seed_areas, _ in results], axis=0)
            alarms[name] = np.concatenate([seed_alarms for _, seed_alarms in results])
            print_mean(name, [areas[name]], [alarms[name]])
    tables = []
    for table in FLAGS.table:
        names = [name for name in areas if name.startswith(table)]
        tables.append(np.mean([areas[name] for name in names], axis=0))
        print_mean(f"mean of {table}", tables[-1:], [alarms[name] for name in names])
    print_mean("mean of tables", tables, list(alarms.values()))
    print_mean("mean of classes", list(areas.values()), list(alarms.values()))
    draw(areas, pathlib.Path(FLAGS.output_dir) / "table_outliers.png")


def standardized(detector: BaseEstimator) -> Pipeline:
    return make_pipeline(StandardScaler(), detector)


def flow(seed: int) -> BaseEstimator:
    options = {"max_steps": FLAGS.max_steps, "random_state": seed}
    # The default density of `FlowOutlierDetector` has the same noise.
    detector = tfr.FlowOutlierDetector(tfr.FlowDensity(FLAGS.num_flows, noise=0.1, **options))
    return by_ranks(detector) if FLAGS.ranks else detector


def by_ranks(detector: BaseEstimator) -> Pipeline:
    """Prepends a step that puts continuous columns first, and maps them to normals by ranks."""
    ranks = QuantileTransformer(n_quantiles=20, output_distribution="normal")
    columns = make_column_transformer((ranks, is_continuous), remainder="passthrough")
    return make_pipeline(columns, detector)


def is_continuous(table: np.ndarray) -> list[bool]:
    """Returns for each column whether more than half of its values are distinct."""
    return [len(np.unique(column)) > len(column) / 2 for column in table.T]


def compare(usual: np.ndarray, unusual: np.ndarray, seed: int) -> tuple[list[float], np.ndarray]:
    """Returns areas under the ROC curve by detector, and whether each new row is a false alarm."""
    train, held_out = train_test_split(usual, test_size=0.5, random_state=seed)
    is_unusual = np.repeat([0, 1], [len(held_out), len(unusual)])
    rows = np.concatenate([held_out, unusual])
    scores = [-new(seed).fit(train).score_samples(rows) for new in _DETECTORS.values()]
    # For n calibrating rows, the false alarm rate equals alpha if alpha (n + 1) is an integer.
    multiple = round(1 / FLAGS.alpha)
    num_calibrating = max(1, int(0.8 * len(held_out)) // multiple) * multiple - 1
    calibrating, new = np.split(scores[-1][: len(held_out)], [num_calibrating])
    p_values = outliers.p_values(new, calibrating)
    return [roc_auc_score(is_unusual, each) for each in scores], p_values <= FLAGS.alpha


def print_mean(name: str, areas: list[np.ndarray], alarms: list[np.ndarray]) -> None:
    cells = [f"{area:.3f}" for area in np.mean(areas, axis=0)]
    print_row(name, [*cells, f"{np.concatenate(alarms).mean():.1%}"])


def print_row(name: str, cells: list[str]) -> None:
    print(f"{name:<25}" + "".join(f"{cell:>17}" for cell in cells), flush=True)


def draw(areas: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Draws the areas under the ROC curve for each class."""
    figure = matplotlib.figure.Figure(figsize=(9, 0.8 + 0.25 * len(areas)), layout="constrained")
    axes = figure.subplots()
    for i, (name, marker) in enumerate(zip(_DETECTORS, "xvv^^ssD", strict=True)):
        values = [class_areas[i] for class_areas in areas.values()]
        face = "none" if ", std" in name else None
        axes.plot(values, range(len(values)), marker, mfc=face, label=name, alpha=0.8)
    axes.set_yticks(range(len(areas)), areas)
    axes.invert_yaxis()
    axes.grid(axis="y", color="0.9")
    axes.set_xlabel("area under the ROC curve")
    figure.legend(loc="outside right upper")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    print(path)


if __name__ == "__main__":
    app.run(main)
