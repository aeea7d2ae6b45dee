"""Two-dimensional densities to learn."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp
from sklearn import datasets

__all__ = ["KNOWN", "NAMES", "sample"]

tfb = tfp.bijectors
tfd = tfp.distributions


def sample(name: str, number: int, seed: int) -> np.ndarray:
    """Returns points of a toy, float32 [number, 2].

    Args:
      name: one of `NAMES`.
      number: of the points.
      seed: of the points.
    """
    if name in KNOWN:
        return KNOWN[name]().sample(number, seed=(seed, 0)).numpy()
    points = _SAMPLERS[name](number, np.random.RandomState(seed))
    return points.astype(np.float32)


def _moons(number: int, rng: np.random.RandomState) -> np.ndarray:
    return datasets.make_moons(number, noise=0.1, random_state=rng)[0]


def _circles(number: int, rng: np.random.RandomState) -> np.ndarray:
    return datasets.make_circles(number, noise=0.06, factor=0.5, random_state=rng)[0]


def _pinwheel(number: int, rng: np.random.RandomState) -> np.ndarray:
    # Normal distributions along five arms, each turned the further the longer it is.
    along, across = rng.normal(1.0, 0.3, number), rng.normal(0.0, 0.1, number)
    angle = 2 * math.pi / 5 * rng.randint(5, size=number) + 0.25 * np.exp(along)
    cos, sin = np.cos(angle), np.sin(angle)
    return 2 * np.stack([along * cos - across * sin, along * sin + across * cos], axis=1)


def _spirals(number: int, rng: np.random.RandomState) -> np.ndarray:
    turn = 3 * math.pi * np.sqrt(rng.uniform(size=number))
    arm = np.stack([-np.cos(turn), np.sin(turn)], axis=1) * turn[:, np.newaxis] / 3
    sign = rng.choice([-1.0, 1.0], size=[number, 1])
    return sign * arm + rng.normal(0.0, 0.1, [number, 2])


def _checkerboard() -> tfd.Distribution:
    """Uniform on the eight black squares of a board of 4×4 unit squares."""
    corners = [[i - 2.0, j - 2.0] for i in range(4) for j in range(4) if (i + j) % 2 == 0]
    low = tf.constant(corners)
    squares = tfd.Independent(tfd.Uniform(low, low + 1.0), 1)
    return tfd.MixtureSameFamily(tfd.Categorical(logits=tf.zeros(8)), squares)


def _ring() -> tfd.Distribution:
    """Eight normal distributions on a circle."""
    angle = tf.range(8.0) * (2 * math.pi / 8)
    centers = 2 * tf.stack([tf.cos(angle), tf.sin(angle)], axis=-1)
    normals = tfd.MultivariateNormalDiag(centers, tf.fill([8, 2], 0.2))
    return tfd.MixtureSameFamily(tfd.Categorical(logits=tf.zeros(8)), normals)


def _banana() -> tfd.Distribution:
    """x₁ ~ N(0, 1), x₂ ~ N(x₁² - 1, 0.3²)."""
    normal = tfd.MultivariateNormalDiag(tf.zeros(2), tf.constant([1.0, 0.3]))
    bend = tfb.RealNVP(1, shift_and_log_scale_fn=lambda x, _: (x**2 - 1, None))
    return tfd.TransformedDistribution(normal, bend)


_SAMPLERS: dict[str, Callable[[int, np.random.RandomState], np.ndarray]] = {
    "moons": _moons,
    "circles": _circles,
    "pinwheel": _pinwheel,
    "spirals": _spirals,
}

# Those whose density is known: functions that return the distribution.
KNOWN: dict[str, Callable[[], tfd.Distribution]] = {
    "checkerboard": _checkerboard,
    "ring": _ring,
    "banana": _banana,
}

NAMES = (*_SAMPLERS, *KNOWN)
