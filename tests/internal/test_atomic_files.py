"""A save or export that fails in the middle leaves what was there."""

import pathlib
import sys

import flow_testing as ft
import forked
import keras
import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp.internal import atomic_files
from tfp_realnvp.internal.atomic_files import atomic_replace

pytestmark = [pytest.mark.quick, pytest.mark.core]

# A limit on the size of files, which an HDF5 library that writes to them answers with a crash.
FULL_DISK = """
import pathlib, resource
import flow_testing as ft
import keras, numpy as np
import tfp_realnvp as tfr

folder = pathlib.Path.cwd()

def make(seed):
    return ft.compiled(ft.vector_distribution(2, num_filters=64, weights_seed=seed))

model = make(0)
checkpoint = tfr.TrainingCheckpoint(folder, model)
saves = {
    "file": lambda: model.save(folder / "flow.keras"),
    "folder": lambda: model.save(folder / "flow", zipped=False),
    "weights": lambda: model.save_weights(folder / "flow.weights.h5"),
    "preset": lambda: model.save_to_preset(folder / "preset"),
    "checkpoint": checkpoint.save,
}
for save in saves.values():
    save()
expected = model.get_weights()
ft.randomize(model.distribution, seed=1)
model.optimizer.iterations.assign(1)
names = sorted(map(str, folder.rglob("*")))
_, limit = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit))
for name, save in saves.items():
    try:
        save()
    except OSError as error:
        print(name, "is refused")
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
assert sorted(map(str, folder.rglob("*"))) == names, set(map(str, folder.rglob("*"))) - set(names)
again = [make(seed) for seed in (2, 3)]
again[0].load_weights(folder / "flow.weights.h5")
assert tfr.TrainingCheckpoint(folder, again[1]).restore()
again += [keras.models.load_model(folder / name) for name in ("flow.keras", "flow")]
again.append(tfr.FlowModel.from_preset(folder / "preset"))
for loaded in again:
    for value, weight in zip(loaded.get_weights(), expected, strict=True):
        np.testing.assert_array_equal(value, weight)
for save in saves.values():
    save()
print("is whole")
"""


def small_flow():
    return ft.flow_distribution((4, 4, 1), num_scales=1, num_blocks=0, num_couplings=1)


class Failure(Exception):
    """Something that goes wrong."""


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_failed_export_leaves_the_old_folder(tmp_path, monkeypatch):
    path = tmp_path / "1"
    path.mkdir()
    (path / "old").write_text("old")
    before = contents(tmp_path)

    def fail(module, folder, **kwargs):
        pathlib.Path(folder).mkdir()
        (pathlib.Path(folder) / "saved_model.pb").write_text("half")
        raise Failure

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(Failure):
        tfr.export_saved_model(small_flow(), path)
    assert contents(tmp_path) == before


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="there are no limits on the size of files")
def test_a_full_disk_leaves_the_old_files(tmp_path):
    exit_code, output = forked.run(FULL_DISK, tmp_path)
    assert exit_code == 0, output
    names = ("file", "folder", "weights", "preset", "checkpoint")
    assert "".join(f"{name} is refused\n" for name in names) in output
    assert output.endswith("is whole\n"), output


_KINDS = [("folder", "folder"), ("file", "folder"), ("folder", "file"), ("link", "folder")]


@pytest.mark.parametrize("kinds", _KINDS)
def test_what_was_there_is_replaced_and_nothing_is_left(tmp_path, kinds):
    target = tmp_path / "target"
    target.mkdir()
    path = tmp_path / "deep" / "model"
    for kind, name in zip(kinds, ("old", "new"), strict=True):
        with atomic_replace(path) as whole:
            if kind == "folder":
                whole.mkdir()
                (whole / name).write_text(kind)
            elif kind == "link":
                whole.symlink_to(target)
            else:
                whole.write_text(kind)
    if kinds[1] == "folder":
        assert [each.name for each in path.iterdir()] == ["new"]
    text = path / "new" if kinds[1] == "folder" else path
    assert text.read_text() == kinds[1] and not path.is_symlink()
    assert [each.name for each in path.parent.iterdir()] == ["model"]
    assert not any(target.iterdir())


def test_a_replacement_that_fails_leaves_the_old_folder(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.write_text("old")
    replace = atomic_files.os.replace

    def fail(source, target):
        if pathlib.Path(target) == path and pathlib.Path(source).is_dir():
            raise Failure
        replace(source, target)

    monkeypatch.setattr(atomic_files.os, "replace", fail)
    with pytest.raises(Failure), atomic_replace(path) as whole:
        whole.mkdir()
    assert path.read_text() == "old"


def test_an_unzipped_model_is_replaced_too(tmp_path):
    model = tfr.FlowModel(small_flow())
    for _ in range(2):
        model.save(tmp_path / "flow", zipped=False)
    assert [each.name for each in tmp_path.iterdir()] == ["flow"]
    assert len(keras.models.load_model(tmp_path / "flow").weights) == len(model.weights)
    for name, zipped in (("flow.keras", False), ("flow", True), ("flow", None)):
        kind = "for zipped=False a folder, not" if zipped is False else "a file"
        message = rf"expected {kind} \*\.keras, got '.*{name}'"
        with pytest.raises(ValueError, match=message):
            model.save(tmp_path / name, zipped=zipped)
    assert [each.name for each in tmp_path.iterdir()] == ["flow"]


def test_overwriting_can_be_forbidden(tmp_path):
    model = tfr.FlowModel(small_flow())
    model.save(tmp_path / "flow.keras", overwrite=False)
    with pytest.raises(FileExistsError, match=r"flow\.keras"):
        model.save(tmp_path / "flow.keras", overwrite=False)
    model.save_weights(tmp_path / "flow.weights.h5", overwrite=False)
    with pytest.raises(FileExistsError, match=r"flow\.weights\.h5"):
        model.save_weights(tmp_path / "flow.weights.h5", overwrite=False)
    with pytest.raises(ValueError, match=r"expected a file \*\.weights\.h5, got '.*flow\.h5'"):
        model.save_weights(tmp_path / "flow.h5")
