"""Conditions that are features of a dataset in TensorFlow Datasets."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.data.tfds_package import import_tfds

__all__ = ["TfdsCondition", "conditions_of"]


@dataclasses.dataclass(frozen=True)
class TfdsCondition:
    """A feature that can be the condition of images.

    Attributes:
      feature: name of the feature.
      num_classes: number of classes, for labels.
      event_shape: shape `(K,)` of a condition, for vectors.
    """

    feature: str
    num_classes: int | None = None
    event_shape: tuple[int] | None = None

    def convert(self, value: Any) -> tf.Tensor:
        """Returns the condition of an example.

        Args:
          value: of the feature: a number, a vector, or a dictionary of numbers.

        Returns:
          A scalar int32 label, or a float32 vector. The components of a dictionary are in the
          order of the sorted names.
        """
        if self.num_classes is not None:
            return tf.cast(value, tf.int32)
        parts = [tf.reshape(tf.cast(part, tf.float32), [-1]) for part in tf.nest.flatten(value)]
        return tf.ensure_shape(tf.concat(parts, axis=0), self.event_shape)


def conditions_of(features: Any) -> dict[str, TfdsCondition]:
    """Returns the features that can be conditions, by name.

    Args:
      features: `builder.info.features`.

    #### Example

    >>> import tensorflow_datasets as tfds
    >>> features = tfds.builder("celeb_a").info.features
    >>> conditions_of(features)["attributes"]
    TfdsCondition(feature='attributes', num_classes=None, event_shape=(40,))

    """
    found = {}
    for name, feature in features.items():
        if isinstance(feature, import_tfds().features.ClassLabel):
            if feature.num_classes is not None:
                found[name] = TfdsCondition(name, num_classes=feature.num_classes)
            continue
        is_dict = isinstance(feature, import_tfds().features.FeaturesDict)
        sizes = [_size(part) for part in (feature.values() if is_dict else [feature])]
        if None not in sizes:
            found[name] = TfdsCondition(name, event_shape=(sum(sizes),))
    return found


def _size(feature: Any) -> int | None:
    """Returns the length of a number or vector; `None` for other features."""
    if not isinstance(feature, import_tfds().features.Tensor):
        return None
    is_number = np.issubdtype(feature.np_dtype, np.number) or feature.np_dtype == np.bool_
    if not is_number or len(feature.shape) > 1 or None in feature.shape:
        return None
    return int(np.prod(feature.shape))
