import sys
import types

import flow_testing as ft
import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from PIL import Image
from tensorflow_probability import distributions as tfd

from tfp_realnvp.plots import (
    draw_grid,
    figures,
    heat_map,
    image_grid,
    pairs,
    save_curves,
    save_history,
    save_image_grid,
    save_labelled_grid,
)


def test_grid_places_images_row_by_row():
    images = np.arange(5, dtype=np.uint8).reshape([5, 1, 1, 1])
    np.testing.assert_array_equal(
        image_grid(images, columns=3, padding=0)[..., 0], [[0, 1, 2], [3, 4, 255]]
    )
    np.testing.assert_array_equal(
        image_grid(images[:2], columns=2)[..., 0],
        [[255, 255, 255, 255, 255], [255, 0, 255, 1, 255], [255, 255, 255, 255, 255]],
    )


def test_grid_is_as_square_as_possible_and_scales_gray_levels():
    assert image_grid(np.zeros([7, 4, 6, 3], np.uint8), padding=0).shape == (12, 18, 3)
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


def test_saved_grid_reads_back(tmp_path):
    images = np.random.default_rng(0).integers(256, size=[4, 5, 6, 3], dtype=np.uint8)
    path = save_image_grid(tmp_path / "new" / "grid.png", images, columns=2, padding=1, upscale=3)
    assert path == tmp_path / "new" / "grid.png"
    pixels = np.asarray(Image.open(path))
    grid = image_grid(images, columns=2, padding=1)
    assert pixels.shape == (3 * 13, 3 * 15, 3)
    np.testing.assert_array_equal(pixels[1::3, 1::3], grid)
    np.testing.assert_array_equal(pixels[::3, 2::3], grid)


@pytest.mark.parametrize(("size", "factor"), [(8, 8), (32, 2), (64, 1), (100, 1)])
def test_small_grayscale_images_are_enlarged(tmp_path, size, factor):
    path = save_image_grid(tmp_path / "a.png", np.zeros([1, size, size, 1], np.uint8), padding=0)
    with Image.open(path) as image:
        assert image.mode == "L"
        assert image.size == (size * factor, size * factor)


def test_saved_curves_read_back_and_differ(tmp_path):
    backend = matplotlib.get_backend()
    curves = {"train": ([1, 2, 3], [4.0, 3.0, 2.0]), "test": (np.array([2.0]), np.array([3.5]))}
    both = np.asarray(Image.open(save_curves(tmp_path / "both.png", curves, "epoch", "bits/dim")))
    del curves["test"]
    one = np.asarray(Image.open(save_curves(tmp_path / "one.png", curves, "epoch", "bits/dim")))
    assert both.shape == one.shape == (540, 840, 4)
    assert (both != one).any()
    assert matplotlib.get_backend() == backend


def test_a_history_is_drawn_by_epoch(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "save_curves", lambda *args: drawn.append(args))
    logs = {"loss": [9.0, 8, 7, 6, 5], "bits_per_dim": [4.0, 3, 2, 1, 0], "val_loss": [8.5, 7]}
    save_history("history.png", types.SimpleNamespace(history=logs))
    save_history("loss.png", logs, "loss")
    (_, bits, *labels), (_, loss, *_) = drawn
    assert labels == ["epoch", "bits/dim"] and list(bits) == ["training"]
    np.testing.assert_array_equal(bits["training"], ([1, 2, 3, 4, 5], logs["bits_per_dim"]))
    np.testing.assert_array_equal(loss["validation"], ([2, 4], logs["val_loss"]))
    with pytest.raises(ValueError, match=r"expected a metric, one of .*'loss'.*got 'accuracy'"):
        save_history("no.png", logs, "accuracy")
    with pytest.raises(TypeError, match="save_history plots a Keras History"):
        save_curves(tmp_path / "curve.png", types.SimpleNamespace(history=logs))


@pytest.mark.parametrize(
    ("frequency", "first", "validated"),
    [(2, 0, [2, 4]), (3, 0, [3]), ([1, 4], 0, [1, 4]), (3, 2, [3])],
)
def test_validations_are_drawn_at_their_epochs(monkeypatch, frequency, first, validated):
    drawn = []
    monkeypatch.setattr(figures, "save_curves", lambda *args: drawn.append(args))
    model = ft.compiled(ft.vector_distribution(2))
    rows = ft.normal([8, 2]).numpy()
    options = {"validation_data": rows, "validation_freq": frequency, "initial_epoch": first}
    save_history("history.png", model.fit(rows, epochs=5, verbose=0, **options))
    [(_, curves, *_)] = drawn
    np.testing.assert_array_equal(curves["training"][0], np.arange(first + 1, 6))
    np.testing.assert_array_equal(curves["validation"][0], validated)


def test_a_grid_is_drawn_on_given_axes():
    _, (left, right) = pyplot.subplots(1, 2)
    images = np.random.default_rng(0).integers(17, size=[2, 3, 4, 5, 1], dtype=np.uint8)
    flat = images.reshape(6, 4, 5, 1)
    assert draw_grid(images, "title", ["a", "b"], num_values=17, ax=left) is left
    assert draw_grid(flat, columns=3, num_values=17, ax=right) is right
    for axes in (left, right):
        pixels = axes.images[0].get_array()
        np.testing.assert_array_equal(pixels, image_grid(flat, 3, num_values=17)[..., 0])
    assert left.get_title() == "title" and right.get_title() == ""
    # Labels are in the middle of the rows.
    assert left.get_yticks().tolist() == [2.5, 7.5] and right.get_yticks().tolist() == []
    assert [label.get_text() for label in left.get_yticklabels()] == ["a", "b"]
    pyplot.close("all")


def test_a_grid_without_axes_has_a_figure_of_its_own():
    before = pyplot.get_fignums()
    axes = draw_grid(np.zeros([6, 4, 8, 3], np.uint8), columns=3, column_labels=["a", "b", "c"])
    assert len(pyplot.get_fignums()) == len(before) + 1
    # 28 and 11 pixels, of which 8 are 2.5 inches.
    np.testing.assert_allclose(axes.figure.get_size_inches(), [28 / 3.2 + 1.6, 11 / 3.2 + 1])
    pyplot.close("all")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_labelled_grid_shows_each_image_under_its_label(tmp_path, channels):
    images = np.arange(0, 240, 40, np.uint8).reshape([2, 3, 1, 1, 1])
    labels = {"row_labels": ["one", "two"], "column_labels": ["a", "b", "c"]}
    grid = np.broadcast_to(images, [2, 3, 4, 4, channels])
    path = save_labelled_grid(tmp_path / "a.png", grid, "title", **labels)
    found = set(np.asarray(Image.open(path).convert("L")).ravel().tolist())
    assert found >= set(images.ravel().tolist())


_BLACK = np.zeros([1, 2, 2, 1], np.uint8)


@pytest.mark.parametrize(
    ("module", "package", "save"),
    [
        ("PIL.Image", "pillow", lambda path: save_image_grid(path, _BLACK)),
        ("matplotlib.figure", "matplotlib", lambda path: pairs(_Density(), _table())),
        ("matplotlib.pyplot", "matplotlib", lambda path: draw_grid(_BLACK)),
    ],
)
def test_missing_packages_name_the_command(tmp_path, monkeypatch, module, package, save):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=f"`pip install {package}`"):
        save(tmp_path / "a.png")


# Columns of a table against each other.


def _table(number=40):
    """Rows of three columns, where those of a lower density are farther from the mean."""
    first = np.linspace(-1, 1, number) ** 3
    return np.stack([first, -50 * first, np.full(number, 7.0)], axis=1)


class _Density:
    """Samples are the rows again, and the last one is far away."""

    def sample(self, number):
        samples = _table(number)
        samples[-1] *= 100
        return samples, "labels, as of GaussianMixture"


class _ScoredDensity(_Density):
    def score_samples(self, rows):
        return -abs(np.asarray(rows)[:, 0] - 0.01)


def _points(axes):
    return {line.get_label(): line.get_xydata() for line in axes.lines}


def _legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_pairs_draw_rows_and_samples():
    rows = _table()
    figure = pairs(_Density(), rows)
    # The lower triangle, row by row.
    panels = figure.axes
    assert len(panels) == 6
    points = _points(panels[1])
    assert list(points) == ["samples, 1 outside", "rows"] == _legend(figure)
    np.testing.assert_array_equal(points["rows"], rows[:, :2])
    np.testing.assert_array_equal(points["samples, 1 outside"][:-1], rows[:-1, :2])
    # The sample that is far away does not stretch the panel; a constant column has a panel too.
    np.testing.assert_allclose(panels[1].get_xlim(), [-1.3, 1.3])
    np.testing.assert_allclose(panels[-1].get_xlim(), [6.5, 7.5])
    assert sum(bar.get_height() for bar in panels[0].containers[0]) == pytest.approx(1)
    labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in panels]
    assert labels[3:] == [("column 0", "column 2"), ("column 1", ""), ("column 2", "")]


def test_pairs_circle_rows_of_the_lowest_density(tmp_path):
    frame = pd.DataFrame(_table(), columns=["a", "b", "c"], index=[f"row {i}" for i in range(40)])
    figure = pairs(_ScoredDensity(), frame, columns=["c", "a"], num_lowest=3)
    label = "lowest density: row 0, row 39, row 1"
    assert _legend(figure) == ["samples, 1 outside", "rows", label]
    lowest = frame.loc[["row 0", "row 39", "row 1"], ["c", "a"]]
    np.testing.assert_array_equal(_points(figure.axes[1])[label], lowest)
    figure.savefig(tmp_path / "pairs.png")
    assert Image.open(tmp_path / "pairs.png").size == (400, 450)
    assert len(_points(pairs(_ScoredDensity(), frame).axes[1])) == 3
    assert len(_points(pairs(_ScoredDensity(), frame, num_lowest=0).axes[1])) == 2


def test_pairs_of_many_rows_show_a_part_and_the_lowest_ones():
    rows = _table(3_000)
    figure = pairs(_ScoredDensity(), rows, columns=[1, 0], num_lowest=1)
    samples, shown, lowest = _points(figure.axes[1]).values()
    assert len(samples) == len(shown) == 1_000
    assert _legend(figure)[1] == "1,000 of 3,000 rows"
    np.testing.assert_array_equal(lowest, rows[:1, [1, 0]])
    assert pairs(_ScoredDensity(), rows, columns=[1]).axes[0].get_xlabel() == "column 1"


@pytest.mark.parametrize("kind", ["frame", "array"])
def test_pairs_draw_categories_and_leave_gaps_out(kind):
    frame = pd.DataFrame(_table(), columns=["a", "b", "c"])
    frame = frame.assign(kind=["x", "y", None, "z"] * 10, day=pd.Timestamp("2024-02-03"))
    frame.loc[:4, "a"] = np.nan
    table = frame if kind == "frame" else frame.to_numpy(object)

    class Density:
        def sample(self, number):
            return frame.iloc[-number:] if kind == "frame" else table[-number:]

    columns = ["a", "kind"] if kind == "frame" else [0, 3]
    _, both, last = pairs(Density(), table, columns=columns, num_lowest=0).axes
    assert [label.get_text() for label in both.get_yticklabels()] == ["x", "y", "z"]
    assert [label.get_text() for label in last.get_xticklabels()] == ["x", "y", "z"]
    points = _points(both)["rows"]
    drawn = points[np.isfinite(points).all(axis=1)]
    is_known = frame["a"].notna() & frame["kind"].notna()
    np.testing.assert_array_equal(drawn[:, 0], frame["a"][is_known])
    codes = frame["kind"][is_known].map({"x": 0, "y": 1, "z": 2})
    assert 0 < abs(drawn[:, 1] - codes).max() <= 0.25
    heights = [bar.get_height() for bar in last.containers[0]]
    np.testing.assert_allclose(heights, 1 / 3)


def test_pairs_of_a_distribution():
    # `_Density` samples as `GaussianMixture`, that of the last test as `KernelDensity`.
    density = tfd.Sample(tfd.Normal(np.float64(0), np.float64(1)), [2])
    rows = np.random.default_rng(0).normal(size=[30, 2])
    assert pairs(density, rows).axes[1].lines[0].get_xydata().shape == (30, 2)


_IMAGE, _GRID = np.zeros([1, 4, 4, 1], np.uint8), np.zeros([2, 3, 4, 4, 1], np.uint8)


def _heat_map(scores, **options):
    return lambda path: heat_map(_IMAGE, scores, **options)


def _grid(images, **options):
    return lambda path: save_image_grid(path, images, **options)


def _labelled(images, **labels):
    return lambda path: save_labelled_grid(path, images, "title", **labels)


def _pairs(rows, density=None, **options):
    return lambda path: pairs(density or _Density(), rows, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_heat_map(np.zeros([1, 3, 4])), r"divide 4 and 4, got \(1, 3, 4\)"),
        (_heat_map(np.zeros([2, 4, 4])), r"scores \[1, h, w\].*got \(2, 4, 4\)"),
        (_heat_map(np.full([1, 2, 2], np.inf)), r"finite scores, .* got \(inf, inf\)"),
        (_heat_map(np.zeros([1, 2, 2]), low=2, high=1), r"low below high, got \(2.0, 1.0\)"),
        (_grid(np.zeros([1, 2, 2, 1])), "dtype uint8, .* got .*float64"),
        (_grid(np.zeros([2, 2, 1], np.uint8)), r"got \(2, 2, 1\)"),
        (_grid(np.zeros([1, 2, 2, 2], np.uint8)), r"1 or 3 channels, got \(1, 2, 2, 2\)"),
        (_grid(_IMAGE + np.uint8(17), num_values=17), r"\[0, 17\), got 17"),
        (_labelled(_GRID[0, :2]), r"\[rows, columns, H, W, C\], got \(2, 4, 4"),
        (_labelled(_GRID, row_labels=["a"]), "2 row labels, got 1"),
        (_labelled(_GRID, column_labels=[]), "3 column labels, got 0"),
        (_pairs(_table(), object()), r"a method sample\(n\), got object.*pipeline\[-1\]"),
        (_pairs(_table(), columns=[3]), r"out of \[0, 1, 2\], got \[3\]"),
        (_pairs(_table(), columns=[1, 1]), r"different .*got \[1, 1\]"),
        (_pairs(np.zeros(3)), r"rows \[N, D\], got \(3,\)"),
        (_pairs(np.zeros([5, 9])), r"at most 8 .*=\[0, 1, 2, 3\], got 9"),
        (_pairs(np.zeros([5, 2])), r"shape \(5, 2\), .*got \(5, 3\)"),
        (_pairs([[1, np.nan, 2]]), "a known cell in each column, got .1 rows"),
        (_pairs([[1, np.inf, 2]]), "finite rows .* got .1 rows"),
    ],
)
def test_errors(tmp_path, call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
