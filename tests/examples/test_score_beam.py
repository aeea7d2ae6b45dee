"""The script that scores files by Apache Beam."""

import pathlib

import flow_testing as ft
import numpy as np
import pytest
import tensorflow as tf

import tfp_realnvp as tfr
from tfp_realnvp import outliers

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("no_graph_optimizer")]

_SHAPE = (4, 4, 1)


def _table(path):
    # With the oldest TensorFlow, pytest imports this file, and pyarrow needs a newer NumPy.
    from pyarrow import parquet

    return parquet.read_table(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Returns a folder with a SavedModel, held-out images, and three files of new images."""
    folder = tmp_path_factory.mktemp("beam")
    flow = ft.flow_distribution(_SHAPE, num_scales=1, num_couplings=1, num_blocks=0)
    tfr.export_saved_model(flow, folder / "model" / "1", image_shape=_SHAPE)
    levels = ft.grey_levels(60, _SHAPE)
    np.save(folder / "held_out.npy", levels[:20])
    np.save(folder / "new_a.npy", levels[20:30])
    np.savez(folder / "new_b.npz", images=levels[30:43])
    with tf.io.TFRecordWriter(str(folder / "new_c.tfrecord-00000-of-00001")) as writer:
        for image in levels[43:]:
            png = tf.train.BytesList(value=[tf.io.encode_png(image).numpy()])
            features = tf.train.Features(feature={"image": tf.train.Feature(bytes_list=png)})
            writer.write(tf.train.Example(features=features).SerializeToString())
    np.save(folder / "log_probs", tfr.log_prob(flow, levels))
    return folder


def _flags(folder, inputs, output, *others):
    model = f"--model={folder / 'model' / '1'}"
    return [model, f"--inputs={folder / inputs}", f"--output={folder / output}", *others]


def test_scores(folder, run_script):
    run_script("score_beam", *_flags(folder, "held_out.npy", "held_out_scores"))
    held_out = f"--held_out={folder / 'held_out_scores*.parquet'}"
    run_script("score_beam", *_flags(folder, "new_*", "scores", held_out, "--batch_size=6"))
    scores = [_table(path) for path in folder.glob("scores-*.parquet")]
    rows = sorted(tuple(row.values()) for table in scores for row in table.to_pylist())
    names = [pathlib.Path(row[0]).name.split(".")[0] for row in rows]
    assert names == ["new_a"] * 10 + ["new_b"] * 13 + ["new_c"] * 17
    assert [row[1] for row in rows] == [*range(10), *range(13), *range(17)]
    log_probs, p_values = np.array([row[2:] for row in rows]).T
    expected = np.load(folder / "log_probs.npy")
    np.testing.assert_allclose(log_probs, expected[20:], rtol=1e-5)
    expected = outliers.p_values(-expected[20:], -expected[:20])
    np.testing.assert_allclose(p_values, expected, atol=1 / 21 + 1e-9)  # scores round
    assert np.mean(p_values == expected) > 0.9


def test_events_of_another_shape(folder, run_script):
    np.save(folder / "wrong.npy", ft.grey_levels(3, (6, 6, 1)))
    with pytest.raises(Exception, match=r"wrong\.npy: expected events of the model"):
        run_script("score_beam", *_flags(folder, "wrong.npy", "wrong"))
    assert not list(folder.glob("wrong*.parquet"))
