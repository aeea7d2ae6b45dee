"""Embeds a condition for all networks of a flow."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.initial_seeds import initial_seed


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class ConditionEmbedding(keras.layers.Layer):
    r"""Embeds a condition.

    | argument | condition | embedding |
    | --- | --- | --- |
    | `num_classes=K` | integer labels [...] | a row of a learned table, [..., E] |
    | `conditional_event_shape=[K]` | vectors [..., K] | two dense layers, [..., E] |
    | `conditional_event_shape=[H, W, K]` | images [..., H, W, K] | the image itself |

    With `dropout`, the layer also learns an embedding of a missing condition, initially zero.

    Attributes:
      spec: the `ConditionSpec`.
      size: length E of the embedding; `None` for images.
    """

    def __init__(
        self,
        conditional_event_shape: Sequence[int | None] | None = None,
        *,
        num_classes: int | None = None,
        size: int | None = None,
        dropout: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Constructs the embedding; arguments are as in `ConditionSpec`."""
        super().__init__(**kwargs)
        self.spec = ConditionSpec(conditional_event_shape, num_classes, dropout)
        if self.spec.event_ndims == 3:
            expected = f"{self.name}: expected a size only for the embedding of labels or vectors"
            validation.require(size is None, expected, size)
        else:
            size = validation.count(64 if size is None else size, "size", 1, self.name)
        self.size = size

    def build(self, input_shape: Any = None) -> None:
        """Creates the variables; ignores `input_shape`."""
        num_classes = self.spec.num_classes
        if num_classes is not None:
            normal = keras.initializers.RandomNormal(seed=initial_seed())
            self.table = self.add_weight((num_classes, self.size), normal, name="table")
        elif self.spec.event_ndims == 1:
            self.dense = [self._dense("dense1", "swish"), self._dense("dense2", None)]
            self.dense[0].build([None, *self.spec.event_shape])
            self.dense[1].build([None, self.size])
        if self.spec.may_be_missing:
            shape = self.embedded_shape[-1:]
            self.no_condition = self.add_weight(shape, "zeros", name="no_condition")

    def _dense(self, name: str, activation: str | None) -> keras.layers.Dense:
        glorot = keras.initializers.GlorotUniform(seed=initial_seed())
        options = {"kernel_initializer": glorot, "dtype": self.dtype_policy, "name": name}
        return keras.layers.Dense(self.size, activation, trainable=self.trainable, **options)

    @property
    def embedded_shape(self) -> Sequence[int | None]:
        """Shape of one embedded condition: (E,), or (H, W, K)."""
        return self.spec.event_shape if self.spec.event_ndims == 3 else (self.size,)

    def call(self, condition: tf.Tensor) -> tf.Tensor:
        """Returns embeddings, [..., *embedded_shape], of conditions from `spec.as_tensor`."""
        if condition.dtype.is_integer:
            is_present = condition[..., tf.newaxis] != -1
            # With `tf.gather`, gradient clipping would compute a wrong norm: its sparse gradient
            # lists repeated labels separately.
            one_hot = tf.one_hot(condition, self.spec.num_classes, dtype=self.table.dtype)
            embedded = tf.tensordot(one_hot, tf.convert_to_tensor(self.table), 1)
            # Inside a graph, label values cannot be checked, so invalid labels give NaN.
            is_label = self.spec.in_range(condition)[..., tf.newaxis]
            embedded = tf.where(is_label, embedded, tf.constant(np.nan, embedded.dtype))
        else:
            axes = [-3, -2, -1] if self.spec.event_ndims == 3 else [-1]
            is_nan = tf.math.is_nan(condition)
            is_present = ~tf.reduce_any(is_nan, axes, keepdims=True)
            # Replace NaNs first: `tf.where` differentiates both branches, and the gradient at NaN
            # is NaN.
            if self.spec.may_be_missing:
                condition = tf.where(is_nan, tf.zeros_like(condition), condition)
            embedded = condition
            if self.spec.event_ndims == 1:
                # Keras layers expect a batch.
                embedded = condition if condition.shape.rank > 1 else condition[tf.newaxis]
                for dense in self.dense:
                    embedded = dense(embedded)
                embedded = embedded if condition.shape.rank > 1 else embedded[0]
        if not self.spec.may_be_missing:
            return embedded
        return tf.where(is_present, embedded, self.no_condition)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config`."""
        num_classes = self.spec.num_classes
        return {
            **super().get_config(),
            "conditional_event_shape": None if num_classes else list(self.spec.event_shape),
            "num_classes": num_classes,
            "size": self.size,
            "dropout": self.spec.dropout,
        }
