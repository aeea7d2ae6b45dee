"""What the networks of this package have in common."""

from __future__ import annotations

import keras

__all__ = ["Conditioner"]


class Conditioner(keras.layers.Layer):
    r"""A network [B, H, W, C] -> [B, H, W, K] that depends on nothing but its input and variables.

    So two networks of equal configuration are one function of both, and can share what was traced
    for it; see `bijectors/traced_coupling.py`. A subclass reads its variables by `value` and writes
    them by `assign` only, that Keras can put tensors in their place. Its call may take
    `checkerboard_parity`, as that of `ConvResNet` does, to be told the board instead of its own, so
    that couplings of both parities share one function.

    #### Example

    >>> import keras
    >>> @keras.saving.register_keras_serializable(package='example')
    ... class OneByOne(Conditioner):
    ...   def __init__(self, filters, **kwargs):
    ...     super().__init__(**kwargs)
    ...     self.filters = filters
    ...     self.conv = keras.layers.Conv2D(filters, 1)
    ...   def call(self, images):
    ...     return self.conv(images)
    ...   def get_config(self):
    ...     return {**super().get_config(), 'filters': self.filters}
    >>> OneByOne(6)(keras.ops.ones([2, 4, 4, 3])).shape
    TensorShape([2, 4, 4, 6])
    """
