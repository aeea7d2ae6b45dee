"""What samples show: recognized images, precision and recall, distances."""

import flow_testing as ft
import numpy as np
import pytest

from benchmarks import recognition

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


@pytest.fixture
def data(tmp_path):
    """Returns a flag, images and labels of three classes; the last 60 are test images."""
    labels = np.arange(300) % 3
    images = ft.grey_levels(300, (8, 8, 1)) // 8
    for label in range(3):
        images[labels == label, 2 * label : 2 * label + 3] += 200
    arrays = {"train": images[:240], "test": images[240:]}
    arrays |= {"train_labels": labels[:240], "test_labels": labels[240:]}
    np.savez(tmp_path / "images.npz", **arrays)
    return f"--data={tmp_path / 'images.npz'}", images, labels


def test_figures(tmp_path, data, capsys):
    flag, images, labels = data
    # Half of them are gray, and half of the labels are wrong.
    path, copies = str(tmp_path / "samples.npz"), str(tmp_path / "copies.npy")
    samples = np.concatenate([images[240:], np.full_like(images[:60], 128)])
    np.savez(path, images=samples, labels=np.concatenate([labels[240:], np.full(60, 5)]))
    np.save(copies, np.repeat(images[:1], 60, axis=0))
    found = recognition.main([path, copies, flag, "--epochs=20"])
    assert found["test images"]["recognized"] > 0.8 > found["independent pixels"]["recognized"]
    assert found["test images"]["precision"] == found["test images"]["recall"] == 1
    assert found["test images"]["distance"] == pytest.approx(1)
    assert 0.4 < found[path]["asked"] <= 0.5
    assert found[path]["precision"] == pytest.approx(0.5)
    # One image again and again is recognized, and is neither diverse nor new.
    assert found[copies]["recognized"] == 1
    assert found[copies]["recall"] < 0.2 and found[copies]["distance"] == pytest.approx(0, abs=1e-2)
    assert f"{path}: recognized {found[path]['recognized']:.3f}, " in capsys.readouterr().out


def test_other_images(tmp_path):
    np.save(tmp_path / "samples.npy", np.zeros([3, 8, 8, 3], np.uint8))
    with pytest.raises(ValueError, match=r"expected .*\[N, 8, 8, 1\] in .*, got \(3, 8, 8, 3\)"):
        recognition.main([str(tmp_path / "samples.npy")])
    with pytest.raises(ValueError, match="expected images with labels, got photos"):
        recognition.main(["--data=photos"])
