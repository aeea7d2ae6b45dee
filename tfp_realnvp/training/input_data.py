"""Converts the arguments of `fit`, `evaluate` and `predict` to arguments for Keras."""

import contextlib
import inspect
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp.distributions import routing
from tfp_realnvp.distributions.data_spec import Batch, Check, as_arrays, parse
from tfp_realnvp.internal import private_api, runtime, validation


def arguments_for_keras(model: Any, method: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Checks the data in the arguments of `fit` or another method, and returns arguments for Keras.

    Wraps arrays in a Keras data adapter, and turns off the autotuning of `tf.data`, see
    `without_autotune`. Passes on other data and arguments unchanged. `fit` raises `ValueError` if
    float32 cannot distinguish the values of a column of vectors.
    """
    signature = inspect.signature(getattr(keras.Model, method))
    arguments = dict(signature.bind(None, *args, **kwargs).arguments)
    arguments.update(arguments.pop("kwargs", {}))
    del arguments["self"]
    callbacks = keras.tree.flatten(arguments.get("callbacks") or [])
    arguments["callbacks"] = [*callbacks, RequireBatch()]
    batch_size = arguments.get("batch_size")
    if batch_size is not None:
        form = "conditions as `predict((events, conditions))`, and " * (method == "predict")
        expected = f"FlowModel.{method}: expected {form}an integer batch_size of at least 1"
        validation.integer(batch_size, 1, expected)
    names = ("x", "y", "sample_weight")
    data: Any = tuple(arguments.pop(name, None) for name in names)
    x = data[0]
    is_dataset = isinstance(x, tf.data.Dataset)
    if is_dataset and method != "fit" and arguments.get("steps") is None:
        if x.cardinality() == tf.data.INFINITE_CARDINALITY:
            raise ValueError(f"FlowModel.{method}: expected a finite dataset, or `steps`.")
    held_out = arguments.pop("validation_data", None)
    fraction = arguments.pop("validation_split", 0.0)
    if held_out is not None:
        held_out = keras.utils.unpack_x_y_sample_weight(held_out)
    elif fraction:
        data, held_out = _split(tuple(map(as_arrays, data)), fraction)
    class_weight = arguments.get("class_weight")
    data = checked_data(model, method, data, class_weight)
    if method == "fit" and hasattr((batch := parse(data)).events, "__array__"):
        model.data_spec.warn_of_values(batch, stacklevel=3)
    dtype = model.distribution.dtype
    if held_out is not None:
        arguments["validation_data"] = _batches(
            *checked_data(model, "evaluate", held_out),
            batch_size=arguments.get("validation_batch_size") or batch_size,
            steps=arguments.get("validation_steps"),
            dtype=dtype,
        )
    if is_dataset and method == "fit":
        # Without `shuffle=False`, Keras warns that it does not shuffle datasets.
        arguments.setdefault("shuffle", False)
    batches = _batches(
        *data,
        batch_size=batch_size,
        steps=arguments.get("steps_per_epoch" if method == "fit" else "steps"),
        dtype=dtype,
        shuffle=method == "fit" and arguments.get("shuffle", True),
        class_weight=class_weight,
    )
    if method == "fit" and isinstance(batches, ArrayBatches):
        # Without a number of steps, Keras makes two iterators for each epoch.
        arguments["steps_per_epoch"] = arguments.get("steps_per_epoch") or batches.num_batches
    data = zip(names, keras.utils.unpack_x_y_sample_weight(batches), strict=True)
    return {**arguments, **{name: part for name, part in data if part is not None}}


def checked_data(model: Any, method: str, data: Any, class_weight: Any = None) -> tuple[Any, ...]:
    """Checks the arguments x, y and `sample_weight` of a method of Keras, and returns them.

    Converts lists of numbers and pandas frames to arrays. A tuple x of events, conditions and
    weights, which Keras would not take apart, replaces the three arguments. Predictions do not
    depend on weights. Raises the errors of `DataSpec.check`, or `ValueError` for a `class_weight`
    without labels.
    """
    x, y, weights = map(as_arrays, data)
    if isinstance(x, tuple) and len(x) == 3:
        x, y, weights = x
    batch, is_batch = parse((x, y, weights)), method.endswith("_on_batch")
    if is_batch and not (tf.is_tensor(batch.events) or hasattr(batch.events, "__array__")):
        expected = f"FlowModel.{method}: expected one batch of events, an array or tensor"
        raise ValueError(f"{expected}, got {type(batch.events).__name__}.")
    if method.startswith("predict"):
        x, y, weights = (x if y is None else (x, y)), None, None
        batch = batch._replace(weights=None)
    caller, trains = f"FlowModel.{method}", method == "fit"
    routing.check_context(model.data_spec.takes_condition, caller)
    has_labels = getattr(model.data_spec.condition_spec, "num_classes", None) is not None
    expected = "FlowModel: expected class_weight only for a distribution that takes labels"
    validation.require(class_weight is None or has_labels, expected, class_weight)
    model.data_spec.check(batch, caller, stacklevel=5, trains=trains)
    return x, y, weights


@contextlib.contextmanager
def errors_of_checks() -> Iterator[None]:
    """Turns an error of the assertions of `checked_events` into a `ValueError`."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(r"assertion failed: \[(FlowModel: .*?\.)\]", str(error), re.DOTALL)
        if found is None:
            raise
        raise ValueError(found[1]) from error


def checked_events(batch: Batch, checks: Sequence[Check]) -> Batch:
    """Returns a batch whose events are computed after assertions of the checks."""
    if not checks:
        return batch
    assertions = [tf.debugging.Assert(is_valid, [message]) for is_valid, message in checks]
    with tf.control_dependencies(assertions):
        return Batch(*(None if part is None else tf.identity(part) for part in batch))


def with_first(batches: Iterator[Any]) -> tuple[Any, Iterator[Any]]:
    """Returns the first batch, or `None` if there is none, and a generator of all batches."""
    first = list(itertools.islice(batches, 1))

    def all_batches() -> Iterator[Any]:  # Keras takes generators, but no `itertools.chain`
        yield from first
        yield from batches

    return next(iter(first), None), all_batches()


class ArrayBatches(private_api.ArrayDataAdapter):
    """A data adapter of arrays that shuffles and batches row indices, not rows.

    Casts floats to the distribution's dtype, and turns off the autotuning of `tf.data`. Each epoch
    has another order. With Keras' own shuffling, all epochs have the same order after
    `keras.utils.set_random_seed`.
    """

    _inputs: Any

    def __init__(self, *data: Any, dtype: tf.DType, **options: Any) -> None:
        super().__init__(*data, **options)
        self.arrays, self._inputs = self._inputs, np.arange(self._num_samples)
        self._float_dtype, self._order = dtype, options.get("shuffle")

    def get_tf_dataset(self) -> tf.data.Dataset:
        """Returns the batches as a dataset."""

        def tensor(values: Any) -> tf.Tensor:
            values = tf.convert_to_tensor(values if tf.is_tensor(values) else np.asarray(values))
            return tf.cast(values, self._float_dtype) if values.dtype.is_floating else values

        def batch(rows: tf.Tensor, tensors: Any) -> Any:
            return tf.nest.map_structure(lambda values: tf.gather(values, rows), tensors)

        with tf.device("CPU"):
            tensors = keras.tree.lists_to_tuples(keras.tree.map_structure(tensor, self.arrays))
            # Zip the row indices with the repeated arrays: if `batch` captured the arrays, its
            # graph would contain copies.
            tensors = tf.data.Dataset.from_tensors(tensors).repeat()
            dataset = tf.data.Dataset.zip((self._row_indices(), tensors))
            dataset = dataset.map(batch, num_parallel_calls=runtime.PARALLEL_CALLS)
            return runtime.without_autotune(dataset.prefetch(runtime.PREFETCHED_BATCHES))

    def _row_indices(self) -> tf.data.Dataset:
        """Returns the indices [B] of the rows of each batch."""
        if not self._order or self._order == "batch":
            return super().get_tf_dataset()
        number = self._num_samples

        def order(seed: tf.Tensor) -> tf.Tensor:
            rows = tf.range(number, dtype=tf.int64)
            return tf.random.experimental.stateless_shuffle(rows, tf.stack([seed, 0]))

        # Each iterator, and so each epoch, draws another seed.
        seeds = tf.data.Dataset.random(rerandomize_each_iteration=True).take(1)
        # Where all batches are full, `drop_remainder` drops nothing and makes their size static.
        is_full = number % self.batch_size == 0
        indices = seeds.map(order).unbatch().batch(self.batch_size, drop_remainder=is_full)
        # As in Keras: no rewrites of the pipeline, and workers may copy it with its random numbers.
        options = tf.data.Options()
        options.experimental_optimization.apply_default_optimizations = False
        options.experimental_external_state_policy = tf.data.experimental.ExternalStatePolicy.IGNORE
        return indices.with_options(options)


def _batches(x: Any, y: Any, sample_weight: Any, *, dtype: tf.DType, **options: Any) -> Any:
    """Wraps arrays in a data adapter, and turns off the autotuning of `tf.data`."""
    if private_api.can_convert_arrays((x, y, sample_weight)):
        if y is None and sample_weight is not None:
            # Keras drops weights without labels, so pass both in a dictionary.
            names = ("image", "conditional_input", "sample_weight")
            parts = parse(x)._replace(weights=sample_weight)
            x = {n: part for n, part in zip(names, parts, strict=True) if part is not None}
            sample_weight = None
        return ArrayBatches(x, y, sample_weight, dtype=dtype, **options)
    if isinstance(x, tf.data.Dataset):
        x = runtime.without_autotune(x)
    return x if y is None and sample_weight is None else (x, y, sample_weight)


def _split(data: Any, fraction: float) -> tuple[Any, Any]:
    """Splits data as Keras does: the last rows are for validation."""
    expected = "FlowModel: expected a validation_split in (0, 1)"
    validation.real(fraction, lambda x: 0 < x < 1, expected)
    expected = "FlowModel.fit: expected arrays or tensors for a validation_split"
    validation.require(private_api.can_convert_arrays(data), expected, data)
    first = int(len(keras.tree.flatten(data)[0]) * (1 - fraction))

    def part(rows: slice) -> Any:
        return keras.tree.map_structure(lambda x: None if x is None else x[rows], data)

    return part(slice(first)), part(slice(first, None))


class RequireBatch(keras.callbacks.Callback):
    """Raises an error if `fit`, `evaluate` or `predict` gets no batch, before Keras fails."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes a batch of `fit`."""
        self._seen.add("fit")

    def on_test_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes a batch of `evaluate`, which `fit` calls for a validation."""
        self._seen.add("evaluate")

    def on_predict_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes a batch of `predict`."""
        self._seen.add("predict")

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Raises the error in `fit`."""
        self._require("fit")

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        """Raises the error in `evaluate`."""
        self._require("evaluate")

    def on_predict_end(self, logs: dict[str, Any] | None = None) -> None:
        """Raises the error in `predict`."""
        self._require("predict")

    def _require(self, method: str) -> None:
        if method not in self._seen:
            raise ValueError(f"FlowModel.{method}: expected data, got an empty dataset.")
