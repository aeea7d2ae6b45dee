"""Measures the share of samples that a classifier recognizes: `python -m benchmarks.recognition`.

A support vector machine, trained without the flow and its samples, classifies scikit-learn's ten
digits, and as an eleventh class images of independent pixels with the same frequencies. The script
prints the share of images that it takes for a digit with a probability above 0.9, for each file of
samples, for the test digits, and for other images of independent pixels:

```
python examples/sample.py --results_dir=results/digits --num_images=1000 --output=samples.npy
python -m benchmarks.recognition samples.npy
```

The share does not measure variety: a flow that repeats one digit would pass.
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

from tfp_realnvp.data import load_arrays

__all__ = ["main"]

_CONFIDENCE, _NO_DIGIT = 0.9, 10


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Prints and returns the shares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("samples", type=pathlib.Path, nargs="*", help="uint8 [N, 8, 8, 1], .npy")
    flags = parser.parse_args(arguments)
    digits = load_arrays("digits")
    rng = np.random.default_rng(0)
    no_digits, others = (rng.permuted(digits.train, axis=0) for _ in range(2))
    # C and gamma are the best of cross-validation on the training digits.
    classifier = CalibratedClassifierCV(SVC(C=3.0, gamma=5e-4), ensemble=False, cv=5)
    classifier.fit(
        _vectors(np.concatenate([digits.train, no_digits])),
        np.concatenate([digits.train_labels, np.full(len(no_digits), _NO_DIGIT)]),
    )
    accuracy = classifier.score(_vectors(digits.test), digits.test_labels)
    print(f"accuracy on {len(digits.test)} test digits: {accuracy:.1%}")
    images = {str(path): np.load(path) for path in flags.samples}
    images |= {"test digits": digits.test, "independent pixels": others}
    shares = {}
    for name, each in images.items():
        confidence = classifier.predict_proba(_vectors(each))[:, :_NO_DIGIT].max(axis=1)
        shares[name] = float((confidence > _CONFIDENCE).mean())
        print(f"{name}: {shares[name]:.1%} of {len(each)} with confidence above {_CONFIDENCE}")
    return shares


def _vectors(images: np.ndarray) -> np.ndarray:
    if images.shape[1:] != (8, 8, 1):
        raise ValueError(f"expected images of shape [N, 8, 8, 1], got {images.shape}.")
    return images.reshape(len(images), -1).astype(np.float64)


if __name__ == "__main__":
    main()
