"""The UCI tables, from made-up files of the same form, and a short run."""

import json
import sys

import h5py
import numpy as np
import pytest

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("train_uci")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uci")
    rng = np.random.default_rng(0)
    for name in ("power", "gas", "hepmass", "miniboone", "BSDS300"):
        (folder / name).mkdir()
    np.save(folder / "power" / "data.npy", rng.integers(0, 30, [200, 8]).astype(float))
    # Columns 0, 2 and 3 are the same up to noise.
    gas = rng.normal(5.0, 2.0, [200, 4])
    gas[:, [2, 3]] = gas[:, [0]] + 0.01 * rng.normal(size=[200, 2])
    np.save(folder / "gas" / "ethylene_CO.npy", gas)
    np.save(folder / "miniboone" / "data.npy", rng.normal(3.0, 2.0, [200, 4]))
    with h5py.File(folder / "BSDS300" / "BSDS300.hdf5", "w") as file:
        for split, number in (("train", 20), ("validation", 5), ("test", 7)):
            file[split] = rng.normal(size=[number, 63])
    for name, number, extra in (("train", 400, []), ("test", 100, ["mass"])):
        rows = rng.normal(2.0, 3.0, [number, 5])
        rows[:, 0] = np.arange(number) % 2
        # The least value of the last column occurs often.
        rows[:, 4] = np.maximum(rows[:, 4], 1.0)
        rows = np.concatenate([rows, np.zeros([number, len(extra)])], axis=1)
        header = ",".join(["# label", "f0", "f1", "f2", "f3", *extra])
        path = folder / "hepmass" / f"1000_{name}.csv"
        np.savetxt(path, rows, delimiter=",", header=header, comments="", fmt="%.18e")
    return folder


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("power", [(162, 6), (18, 6), (20, 6)]),
        ("gas", [(162, 2), (18, 2), (20, 2)]),
        ("hepmass", [(180, 3), (20, 3), (50, 3)]),
        ("miniboone", [(162, 4), (18, 4), (20, 4)]),
        ("bsds300", [(20, 63), (5, 63), (7, 63)]),
    ],
)
def test_splits(folder, name, shapes, script):
    splits = script.load_table(name, folder)
    assert list(splits) == ["train", "validation", "test"]
    assert [rows.shape for rows in splits.values()] == shapes
    assert all(rows.dtype == np.float32 for rows in splits.values())
    # By the moments of training and validation rows, or of all.
    if name in ("power", "hepmass", "miniboone"):
        rows = np.concatenate([splits["train"], splits["validation"]])
        np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(rows.std(axis=0), 1, rtol=3e-3)
    if name == "gas":
        rows = np.concatenate(list(splits.values()))
        np.testing.assert_allclose(rows.std(axis=0, ddof=1), 1, rtol=1e-5)


def test_power_keeps_its_columns_and_adds_noise(folder, script):
    raw = np.load(folder / "power" / "data.npy")
    rows = np.concatenate(list(script.load_table("power", folder).values()))
    for column, original in enumerate([0, 2, 4, 5, 6, 7]):
        # Shuffled and scaled.
        expected = np.sort(raw[:, original])
        scale, shift = np.polyfit(np.sort(rows[:, column]), expected, 1)
        largest = np.abs(scale * np.sort(rows[:, column]) + shift - expected).max()
        assert largest < (1.5 if original in (4, 5, 6) else 0.02)


def test_gas_drops_the_first_of_similar_columns(folder, script):
    raw = np.load(folder / "gas" / "ethylene_CO.npy")
    rows = np.concatenate(list(script.load_table("gas", folder).values()))
    correlation = np.corrcoef(rows.T, raw.T)[:2, 2:]
    np.testing.assert_allclose([correlation[0, 1], correlation[1, 3]], 1, atol=1e-6)


def test_missing_files(tmp_path, script):
    with pytest.raises(FileNotFoundError, match=r"data\.npy"):
        script.load_table("power", tmp_path)


def test_the_pickle_needs_pandas(tmp_path, monkeypatch, script):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"Reading .*ethylene_CO.pickle needs pandas"):
        script.load_table("gas", tmp_path)


def test_a_run(tmp_path, run_script, script):
    (tmp_path / "miniboone").mkdir()
    rows = np.random.default_rng(0).normal(size=[400, 3])
    np.save(tmp_path / "miniboone" / "data.npy", rows)
    options = "--table=miniboone --limit_minutes=0.02 --num_couplings=2".split()
    folders = (f"--data_dir={tmp_path}", f"--output_dir={tmp_path / 'out'}")
    run_script("train_uci", *folders, *options)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    published = {f"{name}, published" for name in script._PUBLISHED}
    assert set(results) == {"Real NVP", "normal distribution", *published}
    assert results["MAF (10), published"] == [-12.24]
    # That of standard normal rows is -3 (1 + log 2π) / 2.
    assert abs(results["normal distribution"][0] + 4.26) < 0.5
    assert results["Real NVP"][0] > -20
    # The time is used up.
    run_script("train_uci", *folders, *options)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
