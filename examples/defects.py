"""Detects and locates defects of a fabric, with a flow that is trained on a network's features.

    python examples/defects.py

The flow is trained on feature maps of images without defects. A low density indicates a defect, and
the log density by position, `tfr.log_prob_map`, locates it. The script prints areas under the ROC
curve (0.5 for random scores): for images with a defect against images without, and for pixels in
defects against all other pixels. It compares these scores:

*   a Gaussian at each position, fitted to the same features (PaDiM, Defard et al. 2020);
*   the distance to the nearest of 5,000 random features of the training images (PatchCore, Roth et
    al. 2021);
*   the log density by position;
*   the log density of the latents alone (FastFlow, Yu et al. 2021).

The script draws the images: a woven fabric with stains, scratches and missing threads. By default
the features come from a small network, which the script first trains to classify other textures. A
network that was trained on photographs detects more defects, but needs a download:

    python examples/defects.py --extractor=MobileNetV2
"""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Callable

import keras
import numpy as np
import tensorflow_probability as tfp
from absl import app, flags
from scipy import ndimage, stats

import tfp_realnvp as tfr
from tfp_realnvp import plots

flags.DEFINE_string("output_dir", "results/defects", "Folder of the figure.")
flags.DEFINE_string("extractor", None, "Name of a network of Keras Applications.")
flags.DEFINE_string("weights", "imagenet", "Weights of --extractor: 'imagenet', 'none', or a file.")
flags.DEFINE_integer("num_train", 400, "Images without a defect to train on.", lower_bound=2)
flags.DEFINE_integer("num_test", 150, "Test images without and with a defect.", lower_bound=3)
flags.DEFINE_integer("num_textures", 2000, "Images to train the small network on.", lower_bound=1)
flags.DEFINE_integer("num_couplings", 6, "Couplings of the flow.", lower_bound=2)
flags.DEFINE_integer("epochs", 20, "Epochs of the flow.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of images and networks.")

FLAGS = flags.FLAGS

_SIDE = 64
_DEFECTS = ("stain", "scratch", "missing thread")
_SMOOTHING = 2.0  # pixels
_NUM_ROWS = 6

tfd = tfp.distributions

# Maps gray levels [N, H, W] to features [N, h, w, C].
Extractor = Callable[[np.ndarray], np.ndarray]


def main(argv: list[str]) -> None:
    del argv
    keras.utils.set_random_seed(FLAGS.seed)
    rng = np.random.default_rng(FLAGS.seed)
    train = np.stack([fabric(rng)[0] for _ in range(FLAGS.num_train)])
    defects = ["none"] * FLAGS.num_test + [_DEFECTS[i % 3] for i in range(FLAGS.num_test)]
    test, masks = map(np.stack, zip(*[fabric(rng, defect) for defect in defects], strict=True))
    extract = pretrained_extractor(FLAGS.extractor) if FLAGS.extractor else small_extractor(rng)
    train_features, test_features = extract(train), extract(test)
    print(f"Features of an image: {test_features.shape[1:]}")
    flow = train_flow(train_features)
    maps = {
        "Gaussian by position": mahalanobis(train_features, test_features),
        "nearest feature": nearest(train_features, test_features, rng),
        "flow, log p": -tfr.log_prob_map(flow, test_features),
        "flow, latents alone": -tfr.log_prob_map(flow, test_features, log_dets=False),
    }
    maps = {name: smooth(scores) for name, scores in maps.items()}
    print_table(maps, masks, np.array(defects))
    draw(test, masks, maps)


def train_flow(features: np.ndarray) -> tfr.FlowModel:
    """Trains a flow on feature maps [N, h, w, C], without a logit or dequantization noise."""
    shape = features.shape[1:]
    # `ActNorm`, the first bijector next to the data, standardizes each channel.
    bijector = tfr.RealNVPImage.compact(
        shape, num_scales=1, num_couplings=FLAGS.num_couplings - 1, num_filters=32, alpha=None
    )
    base = tfd.Sample(tfd.Normal(0.0, 1.0), shape)
    model = tfr.FlowModel(tfd.TransformedDistribution(base, bijector), dequantize=False)
    model.compile(keras.optimizers.Adam(4e-3))
    model.fit(features, epochs=FLAGS.epochs, batch_size=32, verbose=0)
    return model


def mahalanobis(train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Returns squared Mahalanobis distances [N, h, w] for a Gaussian at each position."""
    mean = train.mean(axis=0)
    centered = np.einsum("nhwc->hwnc", train - mean)
    covariance = centered.swapaxes(-1, -2) @ centered / (len(train) - 1)
    covariance += 0.01 * np.eye(train.shape[-1])
    difference = np.einsum("nhwc->hwcn", test - mean)
    return (difference * np.linalg.solve(covariance, difference)).sum(axis=2).transpose(2, 0, 1)


def nearest(train: np.ndarray, test: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns squared distances [N, h, w] to the nearest of a sample of training features."""
    train = train.reshape(-1, train.shape[-1])
    train = rng.choice(train, min(5000, len(train)), replace=False)
    square = (train**2).sum(axis=-1)
    distances = [(square - 2 * features @ train.T).min(axis=-1) for features in test]
    return np.stack(distances) + (test**2).sum(axis=-1)


def smooth(scores: np.ndarray) -> np.ndarray:
    """Interpolates scores [N, h, w] of positions to pixels, and smooths them."""
    factors = (1, _SIDE // scores.shape[1], _SIDE // scores.shape[2])
    scores = ndimage.zoom(scores, factors, order=1, mode="nearest", grid_mode=True)
    return ndimage.gaussian_filter(scores, (0, _SMOOTHING, _SMOOTHING))


def area_under_curve(scores: np.ndarray, are_defects: np.ndarray) -> float:
    """Returns P(score of a defect > other score) + P(equal scores) / 2."""
    ranks = stats.rankdata(scores.ravel())[are_defects.ravel()]
    number = len(ranks)
    return (ranks.mean() - (number + 1) / 2) / (are_defects.size - number)


def print_table(maps: dict[str, np.ndarray], masks: np.ndarray, defects: np.ndarray) -> None:
    """Prints areas under the ROC curve for images and pixels, by kind of defect and for all."""
    print(f"{'images, pixels':<22}{'all':>16}" + "".join(f"{kind:>16}" for kind in _DEFECTS))
    is_good = defects == "none"
    for name, scores in maps.items():
        cells = []
        for kinds in (_DEFECTS, *[[kind] for kind in _DEFECTS]):
            chosen = is_good | np.isin(defects, kinds)
            of_images = area_under_curve(scores[chosen].max(axis=(1, 2)), ~is_good[chosen])
            cells.append(f"{of_images:.3f}, {area_under_curve(scores[chosen], masks[chosen]):.3f}")
        print(f"{name:<22}" + "".join(f"{cell:>16}" for cell in cells))


# Feature extractors.


def small_extractor(rng: np.random.Generator) -> Extractor:
    """Trains a classifier of textures; returns a function from images to features, [16, 16, 16]."""
    labels = rng.integers(0, len(_TEXTURES), FLAGS.num_textures)
    textures = np.stack([_TEXTURES[label](rng) for label in labels])
    textures = as_levels(textures, rng)
    convolution = keras.layers.Conv2D
    image = keras.Input([_SIDE, _SIDE, 1])
    x = keras.layers.Rescaling(1 / 64, offset=-2)(image)
    x = convolution(16, 3, padding="same", activation="swish")(x)
    x = convolution(32, 3, 2, padding="same", activation="swish")(x)
    # Use no activation: a `relu` would give many values of exactly 0, which have no density.
    features = convolution(16, 3, 2, padding="same")(x)
    x = convolution(64, 3, 2, padding="same", activation="swish")(keras.activations.swish(features))
    outputs = keras.layers.Dense(len(_TEXTURES))(keras.layers.GlobalAveragePooling2D()(x))
    classifier = keras.Model(image, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    classifier.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    history = classifier.fit(
        textures[..., np.newaxis], labels, validation_split=0.1, epochs=4, verbose=0
    ).history
    print(f"Accuracy of the small network: {history['val_accuracy'][-1]:.1%} of other textures")
    model = keras.Model(image, features)
    return lambda images: model.predict(images[..., np.newaxis], verbose=0)


def pretrained_extractor(name: str) -> Extractor:
    """Returns a function from images to features of a network of Keras Applications.

    At one eighth of the resolution, the features are the output of the last `Add` layer or, if
    there is none, of the last `BatchNormalization`, before an activation.
    """
    constructor = getattr(keras.applications, name, None)
    if not inspect.isfunction(constructor):
        raise app.UsageError(f"--extractor: expected a name such as MobileNetV2, got {name!r}.")
    weights = None if FLAGS.weights == "none" else FLAGS.weights
    try:
        network = constructor(include_top=False, weights=weights, input_shape=(_SIDE, _SIDE, 3))
    except Exception as error:
        raise SystemExit(
            f"--extractor={name}: the weights could not be loaded. The first use downloads them; "
            f"--weights takes a file instead. {type(error).__name__}: {error}"
        ) from error
    layers = [x for x in network.layers if x.output.shape[1:3] == (_SIDE // 8, _SIDE // 8)]
    outputs = [x.output for x in layers if isinstance(x, keras.layers.BatchNormalization)]
    outputs += [x.output for x in layers if isinstance(x, keras.layers.Add)]
    if not outputs:
        raise app.UsageError(
            f"--extractor: expected a network with batch normalization, got {name}; MobileNetV2, "
            "EfficientNetB0 and ResNet50 have it."
        )
    model = keras.Model(network.input, outputs[-1])
    preprocess = inspect.getmodule(constructor).preprocess_input

    def extract(images: np.ndarray) -> np.ndarray:
        colors = np.repeat(images[..., np.newaxis], 3, axis=-1).astype(np.float32)
        return model.predict(preprocess(colors), verbose=0)

    return extract


# The images.


def fabric(rng: np.random.Generator, defect: str = "none") -> tuple[np.ndarray, np.ndarray]:
    """Returns an image of a woven fabric, and the mask of its defect."""
    period = 8.0
    x, y = rotated_grid(rng, np.deg2rad(4))
    x, y = (axis / period + bend for axis, bend in zip((x, y), bends(rng), strict=True))
    thread_x, thread_y = np.floor(x).astype(int), np.floor(y).astype(int)
    round_x, round_y = np.sin(np.pi * (x % 1)), np.sin(np.pi * (y % 1))
    shade = rng.normal(1, 0.06, [2, 64])
    warp = round_x * (0.6 + 0.4 * round_y) * shade[0, thread_x % 64]
    weft = 0.75 * round_y * (0.6 + 0.4 * round_x) * shade[1, thread_y % 64]
    is_warp_on_top = (thread_x + thread_y) % 2 == 0
    image = clean = np.where(is_warp_on_top, warp, weft)
    row, column = rng.uniform(12, _SIDE - 12, 2).astype(int)
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    if defect == "stain":
        distance = np.hypot(
            (rows - row) / rng.uniform(4, 8), (columns - column) / rng.uniform(4, 8)
        )
        image = clean * (1 - 0.3 * np.exp(-(distance**4)))
    elif defect == "scratch":
        angle, length = rng.uniform(0, np.pi), rng.uniform(6, 14)
        along = (rows - row) * np.sin(angle) + (columns - column) * np.cos(angle)
        across = (rows - row) * np.cos(angle) - (columns - column) * np.sin(angle)
        image = clean + 0.3 * np.exp(-(across**2)) * (abs(along) < length)
    elif defect == "missing thread":
        is_near = abs(y - y[row, column]) < rng.uniform(1, 2)
        image = np.where(is_near & (thread_x == thread_x[row, column]), 0.6 * weft, clean)
    mask = ndimage.binary_closing(abs(image - clean) > 0.05, iterations=2)
    return as_levels(image[np.newaxis], rng)[0], mask


def stripes(rng: np.random.Generator) -> np.ndarray:
    x, _ = rotated_grid(rng)
    return np.sin(2 * np.pi * x / rng.uniform(4, 16))


def checks(rng: np.random.Generator) -> np.ndarray:
    x, y = (axis * 2 * np.pi / rng.uniform(6, 16) for axis in rotated_grid(rng))
    return np.tanh(4 * np.sin(x) * np.sin(y))


def dots(rng: np.random.Generator) -> np.ndarray:
    x, y = (axis * 2 * np.pi / rng.uniform(5, 14) for axis in rotated_grid(rng))
    return np.tanh(3 * (np.cos(x) + np.cos(y) - 1))


def waves(rng: np.random.Generator) -> np.ndarray:
    x, y = rotated_grid(rng)
    return np.sin(2 * np.pi * (x / rng.uniform(5, 14) + 0.3 * np.sin(y / rng.uniform(2, 6))))


def rings(rng: np.random.Generator) -> np.ndarray:
    x, y = rotated_grid(rng)
    return np.sin(2 * np.pi * np.hypot(x % 24 - 12, y % 24 - 12) / rng.uniform(4, 12))


def bricks(rng: np.random.Generator) -> np.ndarray:
    x, y = (axis / rng.uniform(5, 12) for axis in rotated_grid(rng))
    x = x / 2 + 0.5 * (np.floor(y) % 2)
    return np.tanh(6 * np.minimum(2 * (0.5 - abs(x % 1 - 0.5)), 0.5 - abs(y % 1 - 0.5)) - 1)


def grain(rng: np.random.Generator) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.normal(size=[_SIDE, _SIDE]), rng.uniform(0.7, 3))
    return noise / noise.std()


def wood(rng: np.random.Generator) -> np.ndarray:
    x, y = rotated_grid(rng)
    noise = ndimage.gaussian_filter(rng.normal(size=[256, 256]), (rng.uniform(0.7, 2), 9))
    return ndimage.map_coordinates(noise / noise.std(), [x, y], order=1, mode="wrap")


_TEXTURES = (stripes, checks, dots, waves, rings, bricks, grain, wood)


def rotated_grid(rng: np.random.Generator, largest: float = np.pi) -> np.ndarray:
    """Returns the coordinates of pixels, [2, H, W], rotated and shifted at random."""
    angle = rng.uniform(-largest, largest)
    rotation = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    shift = rng.uniform(0, 64, [2, 1, 1])
    return np.tensordot(rotation, np.mgrid[:_SIDE, :_SIDE], axes=1) + shift


def bends(rng: np.random.Generator) -> np.ndarray:
    """Returns smooth displacements of warp and weft threads, [2, H, W], in periods."""
    noise = ndimage.gaussian_filter(rng.normal(size=[2, _SIDE, _SIDE]), (0, 10, 10))
    return 1.5 * noise


def as_levels(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns gray levels of images [N, H, W], with random lighting and camera noise."""
    light = rng.uniform(0.85, 1.15, [len(images), 1, 1])
    noise = rng.normal(0, 4, images.shape)
    return np.clip(np.rint(60 + 110 * light * images + noise), 0, 255).astype(np.uint8)


def draw(images: np.ndarray, masks: np.ndarray, maps: dict[str, np.ndarray]) -> None:
    """Draws the last images, their true masks, and heat maps, one row for each image."""
    images, masks = images[-_NUM_ROWS:, ..., np.newaxis], masks[-_NUM_ROWS:, ..., np.newaxis]
    columns = {
        "image": np.repeat(images, 3, axis=-1),
        "defect": np.repeat(255 * masks.astype(np.uint8), 3, axis=-1),
    }
    for name, scores in maps.items():
        # Colors range from the median score of all test images to nearly the highest score.
        low, high = np.quantile(scores, [0.5, 0.999])
        columns[name] = plots.heat_map(images, scores[-_NUM_ROWS:], low, high)
    path = plots.save_labelled_grid(
        pathlib.Path(FLAGS.output_dir) / "defects.png",
        np.stack(list(columns.values()), axis=1),
        "Where the density is low",
        column_labels=list(columns),
    )
    print(path)


if __name__ == "__main__":
    app.run(main)
