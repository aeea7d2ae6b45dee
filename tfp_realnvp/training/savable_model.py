"""Saves a `FlowModel` as a `.keras` file, weights, a preset or a SavedModel."""

import dataclasses
import itertools
import os
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any, TypeVar

import keras
import tensorflow_probability as tfp

from tfp_realnvp.distributions import VariationalDequantization
from tfp_realnvp.distributions.data_spec import DataSpec
from tfp_realnvp.internal import atomic_files, private_api, validation, versions
from tfp_realnvp.saving import onnx, presets, saved_model, weights_file
from tfp_realnvp.saving.keras_config import deserialize, serialize

Model = TypeVar("Model", bound="SavableModel")


class SavableModel(keras.Model):
    """A Keras model of a distribution that is saved completely or not at all.

    A subclass sets `layers_of_bijectors`, the layers whose weights and `trainable` are saved; and
    defines `compile_options`, a dataclass with the arguments of `compile`, and `build_optimizer`.
    """

    layers_of_bijectors: list[keras.layers.Layer]

    # In `FlowModel`, this method would hide the arguments of `__init__` from `inspect.signature`.
    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Raises `TypeError` for unknown keyword arguments."""
        validation.known_keywords(cls, kwargs)
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, data_spec: DataSpec, name: str | None = None) -> None:
        """Constructs the model of a distribution and its data."""
        # Keras casts the inputs of `call` to the dtype of the model.
        super().__init__(name=name, dtype=data_spec.distribution.dtype.name)
        self._data_spec = data_spec

    @property
    def data_spec(self) -> DataSpec:
        """What data the model takes: events, conditions and noise; immutable."""
        return self._data_spec

    @property
    def distribution(self) -> tfp.distributions.Distribution:
        """The distribution that the model trains."""
        return self._data_spec.distribution

    @property
    def dequantize(self) -> bool:
        """Whether values are integers that get noise."""
        return self._data_spec.dequantize

    @property
    def dequantizer(self) -> VariationalDequantization | None:
        """The distribution of the noise; `None` for uniform noise."""
        return self._data_spec.dequantizer

    @property
    def seed(self) -> int:
        """The seed of the noise."""
        return self._data_spec.seed

    def get_config(self) -> dict[str, Any]:
        """Returns the argument of `from_config`; `TypeError` if a part cannot be serialized."""
        frozen = [i for i, layer in enumerate(self._all_layers()) if not layer.trainable]
        return {
            **versions.current(),
            "name": self.name,
            "distribution": serialize(self.distribution, "distribution"),
            "dequantize": self.dequantize,
            "dequantizer": serialize(self.dequantizer, "dequantizer"),
            "seed": self.seed,
            "frozen_layers": frozen,
        }

    @classmethod
    def from_config(cls: type[Model], config: dict[str, Any], custom_objects: Any = None) -> Model:
        """Returns a model from the result of `get_config`, with newly initialized networks."""
        with versions.named_in_errors(config), private_api.custom_object_scope(custom_objects):
            distribution = deserialize(config["distribution"], tfp.distributions.Distribution)
            dequantizer = config["dequantizer"]
            dequantizer = dequantizer and deserialize(dequantizer, VariationalDequantization)
            arguments = {**config, "distribution": distribution, "dequantizer": dequantizer}
            frozen = arguments.pop("frozen_layers")
            for key in versions.current():
                arguments.pop(key, None)
            model = cls(**arguments)
        layers = model._all_layers()
        for i in frozen:
            # A layer that was constructed with `trainable=False` ignores this assignment, so that
            # Keras freezes none of its nested layers.
            for layer in private_api.flatten_layers(layers[i]):
                layer.trainable = False
        return model

    def _all_layers(self) -> list[keras.layers.Layer]:
        """Returns the layers of bijectors, followed by the layers nested in these."""
        nested = [private_api.flatten_layers(layer) for layer in self.layers_of_bijectors]
        return list(dict.fromkeys([*self.layers_of_bijectors, *itertools.chain(*nested)]))

    def get_compile_config(self) -> dict[str, Any]:
        """Returns the serialized arguments of `compile`; an empty dictionary before `compile`."""
        config = super().get_compile_config()
        return {**config, **dataclasses.asdict(self.compile_options)} if config else config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compiles with the arguments that `get_compile_config` returned."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.build_optimizer()

    def save(
        self,
        filepath: str | os.PathLike[str],
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves architecture, weights and optimizer like `keras.Model.save`, but atomically.

        `keras.models.load_model(filepath)` restores the model, ready for the next training step, in
        any process that has imported `tfp_realnvp`. A failed save leaves the old file unchanged.

        Args:
          filepath: `*.keras`; with `zipped=False` a folder without this ending.
          overwrite: whether an existing file or folder may be replaced.
          zipped: whether to write a zip file; `False` writes a folder.
          **kwargs: as in `keras.Model.save`.

        Raises:
          ValueError: if `filepath` has another ending.
          FileExistsError: if the file exists and `overwrite` is false.
          TypeError: if a part of the distribution cannot be serialized; the message names the part.
          OSError: if the file cannot be written.
        """
        path = os.fspath(filepath)
        if "://" in path:
            # For a remote path, Keras and the remote service determine whether writing is atomic.
            return super().save(filepath, overwrite=overwrite, zipped=zipped, **kwargs)
        is_file = zipped is None or zipped
        if path.endswith(".keras") != is_file:
            kind = "a file *.keras" if is_file else "for zipped=False a folder, not *.keras"
            raise ValueError(
                f"FlowModel.save: expected {kind}, got {path!r}; use "
                "save_weights('model.weights.h5') for weights, export('folder') for a SavedModel."
            )
        if os.path.exists(path) and not overwrite:
            raise FileExistsError(f"FlowModel.save: {path!r} exists.")
        if self.compiled:
            # Loading builds the optimizer, so save its variables too.
            self.build_optimizer()
        with atomic_files.atomic_replace(path) as whole:
            # Let Keras make a zip file in memory first: HDF5 may crash if the disk is full.
            archive = whole if is_file else whole.with_name("archive.keras")
            super().save(archive, **kwargs)
            if not is_file:
                with zipfile.ZipFile(archive) as file:
                    file.extractall(whole)

    def save_weights(
        self, filepath: str | os.PathLike[str], overwrite: bool = True, **kwargs: Any
    ) -> None:
        """Saves weights like `keras.Model.save_weights`, but atomically.

        The arguments are as in Keras; with `max_shard_size` a failure can leave half of the files.

        Raises:
          ValueError: if `filepath` does not end in `.weights.h5`.
          FileExistsError: if the file exists and `overwrite` is false.
          OSError: if the file cannot be written. The old file stays.
        """
        if "://" in os.fspath(filepath) or kwargs.get("max_shard_size") is not None:
            return super().save_weights(filepath, overwrite=overwrite, **kwargs)
        if os.path.exists(filepath) and not overwrite:
            raise FileExistsError(f"FlowModel.save_weights: {os.fspath(filepath)!r} exists.")
        weights_file.save_weights(self, filepath)

    def load_weights(self, filepath: str | os.PathLike[str], **kwargs: Any) -> None:
        """Loads weights like `keras.Model.load_weights`; an error changes no variables.

        Arguments and errors are as in Keras. If the file lacks arrays of the model's layers, or has
        others, raises `ValueError`.
        """
        optimizer = self.optimizer.variables if self.compiled else []
        before = [(v, v.numpy()) for v in (*self.variables, *optimizer)]
        try:
            super().load_weights(filepath, **kwargs)
        except BaseException:
            for variable, value in before:
                variable.assign(value)
            raise

    def save_own_variables(self, store: Any) -> None:
        """Saves the variables like `keras.Model`, and the version of this package."""
        super().save_own_variables(store)
        weights_file.write_versions(store)

    def load_own_variables(self, store: Any) -> None:
        """Checks the arrays of all layers in the file, which `load_model` and `load_weights` read.

        Raises:
          ValueError: if the file lacks an array of a layer, or has an array that no layer has.
        """
        weights_file.check_layers(self, store)
        super().load_own_variables(store)

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = "tf_saved_model",
        verbose: bool | None = None,
        input_signature: Any = None,
        **kwargs: Any,
    ) -> None:
        """Writes a SavedModel for serving, or ONNX models; the arguments are as in Keras.

        Args:
          filepath: the folder.
          format: `'tf_saved_model'`, for `export_saved_model`, or `'onnx'`, for `export_onnx`.
          verbose: as in `export_saved_model`.
          input_signature: must be `None`, because the exporting functions determine the inputs.
          **kwargs: for a SavedModel `image_shape`, as in `export_saved_model`.

        Raises:
          ValueError: if `format` or `input_signature` is invalid, or the export is impossible.
        """
        exporters = {"tf_saved_model": saved_model.export_saved_model, "onnx": onnx.export_onnx}
        validation.choice(format, tuple(exporters), "FlowModel.export: expected a format")
        expected = "FlowModel.export: expected no input_signature; image_shape sets the image size"
        validation.require(input_signature is None, expected, input_signature)
        exporters[format](self, filepath, verbose=verbose, **kwargs)

    def _trackable_children(self, save_type: str = "checkpoint", **kwargs: Any) -> dict[str, Any]:
        """Warns if `tf.saved_model.save` saves the model, which has no functions of its own."""
        if save_type == "savedmodel":
            warnings.warn(
                "tf.saved_model.save writes variables, but no functions of a FlowModel; "
                "`model.export('folder')` writes a SavedModel with log_prob, sample and others.",
                stacklevel=2,
            )
        return super()._trackable_children(save_type, **kwargs)

    def save_to_preset(
        self,
        folder: str | os.PathLike[str],
        *,
        card: Mapping[str, Any] | None = None,
        weights: bool = True,
    ) -> None:
        """Writes the model to a folder, for `from_preset`.

        | file | content |
        | --- | --- |
        | `config.json` | Keras' configuration of the model, without the arguments of `compile` |
        | `model.weights.h5` | the weights, without the optimizer, which `load_weights` reads too |
        | `metadata.json` | the package versions, the date, `parameter_count` and `card` |
        | `README.md` | a model card for the Hugging Face Hub, with a table of `card` |

        If the process is killed, the folder has the complete old or new preset. Other files stay.

        #### Example

        >>> import tempfile, tensorflow_probability as tfp, tfp_realnvp as tfr
        >>> tfd = tfp.distributions
        >>> model = tfr.FlowModel(tfd.TransformedDistribution(
        ...     tfd.Sample(tfd.Normal(0., 1.), [2]), tfr.RealNVPVector(2, num_filters=4)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model.save_to_preset(folder, card={"data": "two moons", "steps": 4_000})
        ...     loaded = tfr.FlowModel.from_preset(folder)
        >>> loaded.count_params() == model.count_params()
        True

        Args:
          folder: created if it is missing; `~` is the user's home. For a folder with the name of a
            preset of this package, pass `'./digits'` or `pathlib.Path('digits')`.
          card: facts about the model by name, such as `data`, `command`, `steps`, `seconds`,
            `bits/dim` and `limits`. Values are JSON values, or NumPy numbers and arrays.
          weights: whether to write the weights file. `False` keeps the file in the folder, for
            example of a `TrainingCheckpoint` with `best_weights='model.weights.h5'`.

        Raises:
          TypeError: if a part of the distribution, named in the message, could not be loaded again.
          ValueError: if `card` cannot be written as JSON, which has only finite numbers, or
            `from_preset(folder)` would load another preset.
          OSError: if the files cannot be written. The folder then does not change.
        """
        presets.write_preset(self, folder, card, weights)

    @classmethod
    def from_preset(
        cls: type[Model],
        handle: str | os.PathLike[str],
        custom_objects: Mapping[str, Any] | None = None,
        network_dtype: str | None = None,
    ) -> Model:
        """Returns the model of a preset, with its weights, not compiled.

        On a subclass, `from_preset` returns a model of this subclass.

        | handle | |
        | --- | --- |
        | a name | a preset that comes with this package |
        | `results/digits` | a folder of `save_to_preset`; `~` is the user's home |
        | `hf://user/repo` | a preset on the Hugging Face Hub; needs huggingface_hub |
        | `kaggle://user/model/keras/variation` | a preset on Kaggle; needs kagglehub |

        Loading runs no code from the preset. The configuration may name layers, initializers,
        regularizers and constraints of Keras, public distributions and bijectors of TFP and of this
        package, `custom_objects`, and objects registered with
        `keras.saving.register_keras_serializable` or named by the caller's
        `keras.saving.custom_object_scope`. The weights file must have exactly the weights
        of the described model, all finite. A model that is much larger than its weights file, or
        has invalid distribution parameters, such as a negative scale, raises an error.

        Args:
          handle: see the table. `'digits'` is a preset of this package, also if a folder has that
            name; `'./digits'` and `pathlib.Path('digits')` are the folder.
          custom_objects: the caller's own classes and functions, keyed by registered name.
          network_dtype: name of a Keras dtype policy for the flow's networks, in place of the
            policy from training. After training with `'mixed_bfloat16'`, `'float32'` makes
            `decode(encode(x))` exact.

        Raises:
          ValueError: if the preset does not exist or is invalid, its class is neither this class
            nor a base or subclass of it, or no network has a dtype that can be replaced.
          ImportError: if the handle needs a library that is not installed.
        """
        return presets.read_preset(cls, handle, custom_objects, network_dtype)
