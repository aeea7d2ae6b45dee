import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tfp_realnvp.plots import heat_map, image_grid, save_curves, save_image_grid, save_labelled_grid


def test_grid_places_images_row_by_row():
    images = np.arange(5, dtype=np.uint8).reshape([5, 1, 1, 1])
    np.testing.assert_array_equal(
        image_grid(images, columns=3, padding=0)[..., 0], [[0, 1, 2], [3, 4, 255]]
    )
    np.testing.assert_array_equal(
        image_grid(images[:2], columns=2)[..., 0],
        [[255, 255, 255, 255, 255], [255, 0, 255, 1, 255], [255, 255, 255, 255, 255]],
    )


def test_grid_is_as_square_as_possible():
    assert image_grid(np.zeros([7, 4, 6, 3], np.uint8), padding=0).shape == (12, 18, 3)


def test_grid_scales_gray_levels():
    images = np.array([0, 4, 16], np.uint8).reshape([3, 1, 1, 1])
    grid = image_grid(images, columns=3, padding=0, num_values=17)
    np.testing.assert_array_equal(grid[..., 0], [[0, 64, 255]])


def test_heat_map_colors_high_scores():
    images = np.array([0, 16, 4, 4, 8, 16, 16, 16], np.uint8).reshape([1, 2, 4, 1])
    pixels = heat_map(images, [[[0.0, 3.0]]], low=1, high=3, num_values=17)
    np.testing.assert_array_equal(
        pixels[0, :, :2], image_grid(images, 1, 0, num_values=17)[:, :2].repeat(3, axis=-1)
    )
    # A quarter of the gray level, three quarters of yellow.
    levels = image_grid(images, 1, 0, num_values=17)[:, 2:].astype(float)
    np.testing.assert_allclose(pixels[0, :, 2:], 0.25 * levels + [191.25, 191.25, 0], atol=0.5)


def test_heat_map_of_colors_shows_their_mean():
    images = np.random.default_rng(0).integers(256, size=[2, 4, 4, 3], dtype=np.uint8)
    scores = np.zeros([2, 4, 4])
    scores[1, 2, 3] = 1
    pixels = heat_map(images, scores)
    assert pixels.dtype == np.uint8
    is_gray = (pixels == pixels[..., :1]).all(axis=-1)
    np.testing.assert_array_equal(is_gray, scores == 0)
    gray = images.mean(axis=-1)[is_gray]
    np.testing.assert_allclose(pixels[..., 0][is_gray], gray, atol=0.5)


@pytest.mark.parametrize(
    ("scores", "kwargs", "message"),
    [
        (np.zeros([1, 3, 4]), {}, r"divide 4 and 4, got shape \(1, 3, 4\)"),
        (np.zeros([2, 4, 4]), {}, r"scores \[1, h, w\].*got shape \(2, 4, 4\)"),
        (np.full([1, 2, 2], np.inf), {}, "finite scores, got 4 others"),
        (np.zeros([1, 2, 2]), {}, "got 0.0 and 0.0"),
        (np.zeros([1, 2, 2]), {"low": 2, "high": 1}, "low score below the high one, got 2 and 1"),
    ],
)
def test_heat_map_errors(scores, kwargs, message):
    with pytest.raises(ValueError, match=message):
        heat_map(np.zeros([1, 4, 4, 1], np.uint8), scores, **kwargs)


def test_saved_grid_reads_back(tmp_path):
    images = np.random.default_rng(0).integers(256, size=[4, 5, 6, 3], dtype=np.uint8)
    path = save_image_grid(tmp_path / "new" / "grid.png", images, columns=2, padding=1, upscale=3)
    assert path == tmp_path / "new" / "grid.png"
    pixels = np.asarray(Image.open(path))
    grid = image_grid(images, columns=2, padding=1)
    assert pixels.shape == (3 * 13, 3 * 15, 3)
    np.testing.assert_array_equal(pixels[1::3, 1::3], grid)
    np.testing.assert_array_equal(pixels[::3, 2::3], grid)
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


@pytest.mark.parametrize(("size", "factor"), [(8, 8), (32, 2), (64, 1), (100, 1)])
def test_small_grayscale_images_are_enlarged(tmp_path, size, factor):
    path = save_image_grid(tmp_path / "a.png", np.zeros([1, size, size, 1], np.uint8), padding=0)
    with Image.open(path) as image:
        assert image.mode == "L"
        assert image.size == (size * factor, size * factor)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    images = np.zeros([1, 8, 8, 1], np.uint8)
    path = save_image_grid(tmp_path / "a.png", images)
    before = path.read_bytes()

    def write_half(self, file, format):
        file.write(b"half an image")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", write_half)
    with pytest.raises(OSError, match="disk full"):
        save_image_grid(path, images + 1)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_saved_curves_read_back_and_differ(tmp_path):
    backend = matplotlib.get_backend()
    curves = {"train": ([1, 2, 3], [4.0, 3.0, 2.0]), "test": (np.array([2.0]), np.array([3.5]))}
    both = np.asarray(Image.open(save_curves(tmp_path / "both.png", curves, "epoch", "bits/dim")))
    del curves["test"]
    one = np.asarray(Image.open(save_curves(tmp_path / "one.png", curves, "epoch", "bits/dim")))
    assert both.shape == one.shape == (540, 840, 4)
    assert (both != one).any()
    assert matplotlib.get_backend() == backend


@pytest.mark.parametrize(
    ("images", "kwargs", "message"),
    [
        (np.zeros([1, 2, 2, 1]), {}, "dtype uint8, got float64"),
        (np.zeros([2, 2, 1], np.uint8), {}, r"got shape \(2, 2, 1\)"),
        (np.zeros([1, 2, 2, 2], np.uint8), {}, r"1 or 3 channels, got shape \(1, 2, 2, 2\)"),
        (np.full([1, 2, 2, 1], 17, np.uint8), {"num_values": 17}, r"\[0, 17\), got 17"),
        (np.zeros([1, 2, 2, 1], np.uint8), {"num_values": 1}, r"\[2, 256\], got 1"),
        (np.zeros([1, 2, 2, 1], np.uint8), {"columns": 0}, "at least one column, got 0"),
        (np.zeros([1, 2, 2, 1], np.uint8), {"padding": -1}, "at least 0, got -1"),
        (np.zeros([1, 2, 2, 1], np.uint8), {"upscale": 0}, "at least 1, got 0"),
    ],
)
def test_grid_errors(tmp_path, images, kwargs, message):
    with pytest.raises(ValueError, match=message):
        save_image_grid(tmp_path / "a.png", images, **kwargs)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("curves", "message"),
    [({}, "at least one curve"), ({"loss": ([1, 2], [1.0])}, r"'loss' .* \(2,\) and \(1,\)")],
)
def test_curve_errors(tmp_path, curves, message):
    with pytest.raises(ValueError, match=message):
        save_curves(tmp_path / "a.png", curves, "x", "y")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("channels", [1, 3])
def test_a_labelled_grid_shows_each_image_under_its_label(tmp_path, channels):
    images = np.arange(0, 240, 40, np.uint8).reshape([2, 3, 1, 1, 1])
    path = save_labelled_grid(
        tmp_path / "a.png",
        np.broadcast_to(images, [2, 3, 4, 4, channels]),
        "title",
        row_labels=["one", "two"],
        column_labels=["a", "b", "c"],
    )
    found = set(np.asarray(Image.open(path).convert("L")).ravel().tolist())
    assert found >= set(images.ravel().tolist())
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros([2, 4, 4, 1], np.uint8), {}, r"\[rows, columns, H, W, C\], got shape \(2, 4, 4"),
        (np.zeros([2, 3, 4, 4, 1], np.uint8), {"row_labels": ["a"]}, "2 row labels, got 1"),
        (np.zeros([2, 3, 4, 4, 1], np.uint8), {"column_labels": []}, "3 column labels, got 0"),
    ],
)
def test_labelled_grid_errors(tmp_path, images, labels, message):
    with pytest.raises(ValueError, match=message):
        save_labelled_grid(tmp_path / "a.png", images, "title", **labels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "package", "save"),
    [
        ("PIL", "pillow", lambda path: save_image_grid(path, np.zeros([1, 2, 2, 1], np.uint8))),
        (
            "matplotlib.figure",
            "matplotlib",
            lambda path: save_curves(path, {"a": ([1], [1])}, "x", "y"),
        ),
    ],
)
def test_missing_packages_name_the_command(tmp_path, monkeypatch, module, package, save):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"`pip install {package}`"):
        save(tmp_path / "a.png")
