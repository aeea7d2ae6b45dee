"""The base class of transformers."""

from __future__ import annotations

import abc
from collections.abc import Callable

import keras
import tensorflow as tf

from tfp_realnvp.internal.configurable import Configurable


class Transformer(Configurable, keras.layers.Layer, abc.ABC):
    r"""An elementwise bijection x = f(z; θ) from latents to data, with P parameters per element.

    A coupling's network predicts the parameters: `P c` channels for c transformed channels, first
    the first parameter of all channels, then the second, and so on.

    `RealNVPImage(..., transformer=f)` calls f, a subclass or a function, to create the transformer
    of each coupling. A transformer is a Keras layer, which creates variables by `add_weight` in its
    constructor. To save your own transformer, decorate f with
    `keras.saving.register_keras_serializable()`. Store each constructor argument as an attribute of
    that name, or override `get_config`.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> class Double(tfr.Transformer):
    ...   num_parameters = 1
    ...   def inverse(self, x, parameters):
    ...     return x * tf.exp(parameters), parameters
    ...   def forward(self, z, parameters):
    ...     return z * tf.exp(-parameters), -parameters
    >>> z, log_det = Double().inverse(tf.ones([2, 4, 4, 3]), tf.zeros([2, 4, 4, 3]))
    >>> z.shape, log_det.shape
    (TensorShape([2, 4, 4, 3]), TensorShape([2, 4, 4, 3]))

    #### References

    Papamakarios et al.: Normalizing flows for probabilistic modeling and inference, section 3.1.
    """

    is_constant_jacobian = False
    # Whether parameters of zero give exactly the identity.
    is_identity_at_zero = False

    def __init__(self, name: str | None = None) -> None:
        # Keras must not cast inputs.
        super().__init__(name=name, dtype="float32")
        self.built = True

    @property
    @abc.abstractmethod
    def num_parameters(self) -> int:
        """P, the number of parameters per element; a class attribute in most subclasses."""

    @abc.abstractmethod
    def inverse(self, x: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns z and log |dz/dx| of each element.

        Args:
          x: data, [..., H, W, c], or [..., c] of vectors.
          parameters: [..., H, W, P c], or [..., P c].
        """

    @abc.abstractmethod
    def forward(self, z: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x and log |dx/dz| of each element; see `inverse`."""


# A function that returns a new transformer.
TransformerFn = Callable[[], Transformer]
