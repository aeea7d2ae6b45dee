r"""Scores datasets too large for one machine, with an exported model and Apache Beam.

    python -c "import tfp_realnvp as t; t.FlowModel.from_preset('results/digits').export('flow/1')"
    python examples/score_beam.py --model=flow/1 --inputs='held_out/*.npy' --output=held_out/scores
    python examples/score_beam.py --model=flow/1 --inputs='new/*.tfrecord*' --output=new/scores \
        --held_out='held_out/scores*.parquet'

Each row of the Parquet files `scores-00000-of-00002.parquet`, … is an event:

| column | |
| --- | --- |
| `file`, `index` | the input file, and the index of the event in this file, from 0 |
| `log_prob` | the log density in nats; gray levels get uniform noise, determined by `--seed` |
| `p_value` | with `--held_out`: the conformal p-value of -log_prob, `tfr.outliers.p_values` |

Inputs are `.npy` files of uint8 images [N, H, W, C] or of inputs of the model's `log_prob`, `.npz`
files with such an array named `images`, or TFRecord files with any other ending. TFRecord files
have the format of TensorFlow Datasets: a record is a `tf.train.Example` whose feature `image` is a
PNG or JPEG file. A single worker reads each file, so use many files for many workers. Beam renames
the results after it has written all of them. A killed run therefore leaves all files or none, and
you can run the same command again. Options of Beam come last, after `--`:

    python examples/score_beam.py … -- --direct_num_workers=8 --direct_running_mode=multi_processing
    python examples/score_beam.py … -- --runner=FlinkRunner --flink_master=http://host:8081
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow as tf
from absl import app, flags
from apache_beam.io import fileio
from apache_beam.io.filesystems import FileSystems
from apache_beam.io.parquetio import WriteToParquetBatched
from apache_beam.options.pipeline_options import PipelineOptions
from pyarrow import parquet

from tfp_realnvp import outliers

flags.DEFINE_string("model", None, "Folder of the SavedModel.", required=True)
flags.DEFINE_string("inputs", None, "Pattern of the input files.", required=True)
flags.DEFINE_string("output", None, "Beginning of the paths of the results.", required=True)
flags.DEFINE_string("held_out", None, "Pattern of results for held-out events.")
flags.DEFINE_integer("batch_size", 256, "Events in a batch.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Seed of the noise on gray levels.")

FLAGS = flags.FLAGS

_SCHEMA = pa.schema([("file", pa.string()), ("index", pa.int64()), ("log_prob", pa.float64())])
_P_VALUE = pa.field("p_value", pa.float64())


class Batch(NamedTuple):
    """Consecutive events of a file; `start` is the index of the first event."""

    file: str
    start: int
    events: np.ndarray


def main(argv: list[str]) -> None:
    # Beam's default, `DirectRunner`, may download another runner. `FnApiRunner` runs locally.
    options = PipelineOptions(["--runner=FnApiRunner", *argv[1:]])
    held_out = None if FLAGS.held_out is None else read_log_probs(FLAGS.held_out)
    schema = _SCHEMA if held_out is None else _SCHEMA.append(_P_VALUE)
    with beam.Pipeline(options=options) as pipeline:
        (
            pipeline
            | "Match" >> fileio.MatchFiles(FLAGS.inputs)
            | "Distribute" >> beam.Reshuffle()
            | "Open" >> fileio.ReadMatches()
            | "Read" >> beam.FlatMap(read_batches, FLAGS.batch_size)
            | "Score" >> beam.ParDo(Score(FLAGS.model, FLAGS.seed, held_out))
            | "Write" >> WriteToParquetBatched(FLAGS.output, schema, file_name_suffix=".parquet")
        )


def read_log_probs(pattern: str) -> np.ndarray:
    """Returns the log densities [n] in the Parquet files of an earlier run."""
    (match,) = FileSystems.match([pattern])
    if not match.metadata_list:
        raise app.UsageError(f"expected files of an earlier run as --held_out, got {pattern!r}")
    tables = []
    for metadata in match.metadata_list:
        with FileSystems.open(metadata.path) as file:
            tables.append(parquet.read_table(file, columns=["log_prob"]))
    return pa.concat_tables(tables)["log_prob"].to_numpy()


def read_batches(file: fileio.ReadableFile, batch_size: int) -> Iterator[Batch]:
    """Yields the events of a file."""
    path = file.metadata.path
    suffix = pathlib.PurePath(path).suffix
    if suffix in (".npy", ".npz"):
        with file.open() as handle:
            array = np.load(handle)
            array = array["images"] if suffix == ".npz" else array
        batches = (array[i : i + batch_size] for i in range(0, len(array), batch_size))
    else:
        records = tf.data.TFRecordDataset(path).map(decoded).batch(batch_size)
        options = tf.data.Options()
        options.autotune.enabled = False  # the iterator would wait for autotuning
        batches = records.with_options(options).as_numpy_iterator()
    start = 0
    for events in batches:
        yield Batch(path, start, events)
        start += len(events)


def decoded(record: tf.Tensor) -> tf.Tensor:
    """Returns the image [H, W, C] of a record of TensorFlow Datasets, uint8."""
    features = {"image": tf.io.FixedLenFeature([], tf.string)}
    image = tf.io.parse_single_example(record, features)["image"]
    return tf.io.decode_image(image, expand_animations=False)


class Score(beam.DoFn):
    """Maps batches of events to tables of their scores."""

    def __init__(self, path: str, seed: int, held_out: np.ndarray | None) -> None:
        self._path, self._seed, self._held_out = path, seed, held_out

    def setup(self) -> None:
        self._signatures = tf.saved_model.load(self._path).signatures
        inputs = self._signatures["log_prob"].structured_input_signature[1]
        if "conditional_input" in inputs:
            raise ValueError(f"{self._path}: expected a model without a condition.")
        ((self._name, self._spec),) = inputs.items()

    def process(self, batch: Batch) -> Iterator[pa.Table]:
        log_probs = self._log_prob(batch).astype(np.float64)
        columns = {
            "file": [batch.file] * len(log_probs),
            "index": batch.start + np.arange(len(log_probs)),
            "log_prob": log_probs,
        }
        if self._held_out is not None:
            columns["p_value"] = outliers.p_values(-log_probs, -self._held_out)
        yield pa.table(columns)

    def _log_prob(self, batch: Batch) -> np.ndarray:
        events, options, function = batch.events, {}, "log_prob"
        if self._name == "images" and not np.issubdtype(events.dtype, np.floating):
            options, function = {"seed": tf.constant(self._seed)}, "log_prob_uint8"
        fits = self._spec.shape.is_compatible_with(events.shape)
        is_known = function == "log_prob" or events.dtype == np.uint8
        if not (fits and is_known and function in self._signatures):
            raise ValueError(
                f"{batch.file}: expected events of the model, {self._spec}, or uint8 if it has "
                f"gray levels, got {events.dtype} {events.shape}."
            )
        dtype = self._spec.dtype if function == "log_prob" else tf.uint8
        options[self._name] = tf.constant(events, dtype)
        return self._signatures[function](**options)["log_prob"].numpy()


if __name__ == "__main__":
    app.run(main)
