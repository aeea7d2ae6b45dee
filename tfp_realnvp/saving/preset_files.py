"""The files of a preset, which may come from anyone."""

from __future__ import annotations

import json
import math
import os
import pathlib
from typing import Any

from tfp_realnvp.internal import atomic_files
from tfp_realnvp.internal.optional_packages import missing_package

__all__ = [
    "CARD",
    "CONFIG",
    "FORMAT_VERSION",
    "METADATA",
    "WEIGHTS",
    "check_version",
    "file_of",
    "locate",
    "read_json",
    "refusal",
]

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
CARD = "README.md"
FORMAT_VERSION = 1
_BUNDLED = pathlib.Path(__file__).parents[1] / "presets"

_MAX_JSON_BYTES = 2**26


def locate(handle: str) -> tuple[pathlib.Path, pathlib.Path]:
    """Returns the folder of a preset, and the folder that its files must not leave."""
    if handle.startswith("hf://"):
        try:
            import huggingface_hub
        except ImportError as error:
            raise missing_package(f"The preset {handle!r}", "huggingface_hub") from error
        names = [CONFIG, METADATA, WEIGHTS, CARD]
        repository = handle.removeprefix("hf://")
        folder = pathlib.Path(
            huggingface_hub.snapshot_download(repository, allow_patterns=names)
        ).resolve()
        # The files of repository/snapshots/revision are links to repository/blobs.
        return folder, folder.parents[1]
    if handle.startswith("kaggle://"):
        try:
            import kagglehub
        except ImportError as error:
            raise missing_package(f"The preset {handle!r}", "kagglehub") from error
        folder = pathlib.Path(kagglehub.model_download(handle.removeprefix("kaggle://")))
    else:
        bundled = sorted(path.name for path in _BUNDLED.glob("*") if path.is_dir())
        folder = (
            _BUNDLED / handle if handle in bundled else pathlib.Path(os.path.expanduser(handle))
        )
        if not folder.is_dir():
            raise ValueError(
                f"from_preset: expected one of the names {bundled}, a folder of save_to_preset, or "
                f"a handle hf://user/repo or kaggle://user/model/keras/variation, got {handle!r}."
            )
    folder = folder.resolve()
    return folder, folder


def file_of(folder: pathlib.Path, root: pathlib.Path, name: str) -> pathlib.Path:
    """Returns the path of a file of a preset; raises `ValueError` if it is none of the folder."""
    path = atomic_files.current_path(folder, name).resolve()
    if not path.is_relative_to(root):
        raise ValueError(f"from_preset: expected {name} in {folder}, got a link to {path}.")
    if not path.is_file():
        raise ValueError(
            f"from_preset: expected {CONFIG}, {METADATA} and {WEIGHTS} in {folder}, got no file "
            f"{name}."
        )
    return path


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the object in a file; raises `ValueError` if there is none, or a very large one."""
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(
            f"from_preset: expected at most {_MAX_JSON_BYTES:,} bytes in {path}, got "
            f"{path.stat().st_size:,}."
        )
    try:
        value = json.loads(path.read_bytes(), parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise refusal(f"JSON in {path}", error) from error
    if not isinstance(value, dict):
        raise ValueError(f"from_preset: expected a JSON object in {path}, got {value!r:.80}.")
    return value


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"the number {text}, which is not finite")
    return number


def check_version(path: pathlib.Path) -> None:
    """Raises `ValueError` if the metadata are not of a version that can be read."""
    version = read_json(path).get("format_version")
    is_integer = isinstance(version, int) and not isinstance(version, bool)
    if not is_integer or not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"from_preset: expected format_version 1 to {FORMAT_VERSION} in {path}, got "
            f"{version!r:.80}; a newer version of tfp_realnvp may be able to read it."
        )


def refusal(expected: str, error: BaseException) -> ValueError:
    """Returns the error for something that is not as expected, with the first reason."""
    # Keras' own sentence is around the reason, with the whole configuration.
    while reason := error.__cause__ or error.__context__:
        error = reason
    return ValueError(f"from_preset: expected {expected}, got {type(error).__name__}: {error}")
