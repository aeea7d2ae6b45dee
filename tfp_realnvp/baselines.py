"""Baselines for a flow: two simple densities over images, in bits/dim.

Both are densities over dequantized pixels x = pixel + u, u ~ U[0, 1), with x in [0, num_values).
Their bits/dim are comparable with those of a flow on the same data:

    bits/dim = −log₂ p(x) / D,    D = H·W·C.

The uniform density on [0, num_values) has log₂(num_values) bits/dim, which is 8 for 256 levels.
"""

import math

import numpy as np

__all__ = ["FullCovarianceGaussian", "IndependentHistograms"]

# Images converted to float64 at a time, so that they need little memory.
_CHUNK = 1024


class FullCovarianceGaussian:
    """A Gaussian over all pixels and channels of an image with a full covariance matrix.

    With the mean m and covariance S of the integer training pixels, dequantized pixels have

        mean μ = m + ½,    covariance Σ = S + I/12,

    exactly, because the noise U[0, 1) has mean ½ and variance 1/12. Fitting therefore needs no
    noise samples and no shrinkage, and Σ is never singular: a pixel that is constant in the
    training images has the variance of the noise. The estimate is good if there are several times
    more images than dimensions. The density is not truncated to [0, num_values).

    Use `FullCovarianceGaussian.fit` to construct one.

    Attributes:
      mean: `float64` array of shape `[D]`, in pixel values.
      covariance: `float64` array of shape `[D, D]`, in squared pixel values.
      num_values: number of pixel levels.

    #### Example

    >>> import numpy as np
    >>> images = np.random.default_rng(0).integers(256, size=[200, 2, 2, 1], dtype=np.uint8)
    >>> gaussian = FullCovarianceGaussian.fit(images, num_values=256)
    >>> 8.0 < gaussian.bits_per_dim(images) < 8.5  # the uniform density has 8
    True

    """

    def __init__(
        self,
        mean: np.ndarray,
        covariance: np.ndarray,
        image_shape: tuple[int, ...],
        num_values: int,
    ) -> None:
        self.mean = mean
        self.covariance = covariance
        self.num_values = num_values
        self._image_shape = tuple(image_shape)
        cholesky = np.linalg.cholesky(covariance)
        self._log_det = 2.0 * np.log(np.diagonal(cholesky)).sum()
        # Whitens row vectors.
        self._whitening = np.linalg.inv(cholesky).T

    @classmethod
    def fit(
        cls, train: np.ndarray, num_values: int, *, flip: bool = False
    ) -> "FullCovarianceGaussian":
        """Fits the Gaussian to images by their mean and covariance and those of the noise.

        Args:
          train: integer array of shape `[N, H, W, C]`, with values in `[0, num_values)`.
          num_values: number of pixel levels.
          flip: whether to include the mirrored images, as in training with random horizontal flips.

        Returns:
          The fitted `FullCovarianceGaussian`.

        Raises:
          ValueError: if `train` is not a nonempty integer array of rank 4, or has values outside
            `[0, num_values)`.

        """
        _check(train, num_values)
        dims = math.prod(train.shape[1:])
        versions = [train, train[:, :, ::-1]] if flip else [train]
        count = len(versions) * len(train)
        mean = sum(v.mean(axis=0, dtype=np.float64).reshape(dims) for v in versions) / len(versions)
        covariance = np.zeros([dims, dims])
        for version in versions:
            for start in range(0, len(version), _CHUNK):
                chunk = version[start : start + _CHUNK].reshape(-1, dims) - mean
                covariance += chunk.T @ chunk / count
        covariance[np.diag_indices(dims)] += 1.0 / 12.0
        return cls(mean + 0.5, covariance, train.shape[1:], num_values)

    def bits_per_dim(self, images: np.ndarray, seed: int = 0) -> float:
        """Returns the mean bits/dim of dequantized images.

        Args:
          images: integer array of shape `[M, H, W, C]`, with values in `[0, num_values)`.
          seed: seed of the dequantization noise.

        Returns:
          Bits/dim, the mean over the images.

        Raises:
          ValueError: if `images` is not a nonempty integer array of images of the fitted shape, or
            has values outside `[0, num_values)`.

        """
        _check(images, self.num_values, self._image_shape)
        rng = np.random.default_rng(seed)
        dims = len(self.mean)
        squares = 0.0
        for start in range(0, len(images), _CHUNK):
            pixels = images[start : start + _CHUNK].reshape(-1, dims)
            x = pixels + rng.random(pixels.shape)
            squares += np.sum(((x - self.mean) @ self._whitening) ** 2)
        nats = 0.5 * (squares / len(images) + self._log_det + dims * math.log(2.0 * math.pi))
        return float(nats / (dims * math.log(2.0)))


class IndependentHistograms:
    """Independent histograms, one for each pixel and channel.

    With the number n_d(k) of the N training images that have the value k in dimension d, and
    add-one (Laplace) smoothing,

        P_d(k) = (n_d(k) + 1) / (N + num_values),    p(x) = Π_d P_d(⌊x_d⌋).

    The density is constant on each unit cell of dequantized pixels. Its bits/dim are therefore
    those of the integer images and do not depend on noise.

    Use `IndependentHistograms.fit` to construct one.

    Attributes:
      probabilities: `float64` array of shape `[D, num_values]`. Its rows sum to one.
      num_values: number of pixel levels.

    #### Example

    >>> import numpy as np
    >>> images = np.array([0, 0, 1], np.uint8).reshape([3, 1, 1, 1])
    >>> histograms = IndependentHistograms.fit(images, num_values=2)
    >>> [round(float(p), 6) for p in histograms.probabilities[0]]
    [0.6, 0.4]

    """

    def __init__(self, probabilities: np.ndarray, image_shape: tuple[int, ...]) -> None:
        self.probabilities = probabilities
        self.num_values = probabilities.shape[1]
        self._image_shape = tuple(image_shape)

    @classmethod
    def fit(cls, train: np.ndarray, num_values: int) -> "IndependentHistograms":
        """Fits the histograms to images.

        Args:
          train: integer array of shape `[N, H, W, C]`, with values in `[0, num_values)`.
          num_values: number of pixel levels.

        Returns:
          The fitted `IndependentHistograms`.

        Raises:
          ValueError: if `train` is not a nonempty integer array of rank 4, or has values outside
            `[0, num_values)`.

        """
        _check(train, num_values)
        columns = train.reshape(len(train), -1).T
        counts = np.stack([np.bincount(column, minlength=num_values) for column in columns])
        return cls((counts + 1.0) / (len(train) + num_values), train.shape[1:])

    def bits_per_dim(self, images: np.ndarray) -> float:
        """Returns the mean bits/dim of images.

        Args:
          images: integer array of shape `[M, H, W, C]`, with values in `[0, num_values)`.

        Returns:
          Bits/dim, the mean over the images.

        Raises:
          ValueError: if `images` is not a nonempty integer array of images of the fitted shape, or
            has values outside `[0, num_values)`.

        """
        _check(images, self.num_values, self._image_shape)
        pixels = images.reshape(len(images), -1)
        bits = -np.log2(self.probabilities)
        return float(bits[np.arange(pixels.shape[1]), pixels].mean())


def _check(images: np.ndarray, num_values: int, image_shape: tuple[int, ...] | None = None) -> None:
    if not np.issubdtype(images.dtype, np.integer):
        raise ValueError(f"Expected images of an integer dtype, got {images.dtype}.")
    if images.ndim != 4 or images.size == 0:
        raise ValueError(f"Expected at least one image, [N, H, W, C], got shape {images.shape}.")
    if image_shape is not None and images.shape[1:] != image_shape:
        raise ValueError(f"Expected images of shape {image_shape}, got {images.shape[1:]}.")
    if images.min() < 0 or images.max() >= num_values:
        raise ValueError(
            f"Expected pixels in [0, {num_values}), got values from {images.min()} "
            f"to {images.max()}."
        )
