"""The base class of transformers."""

from __future__ import annotations

import abc
import copy
from collections.abc import Callable, Sequence

import tensorflow as tf

from tfp_realnvp.internal.configurable import Configurable

__all__ = ["Transformer", "TransformerFn"]


class Transformer(Configurable, tf.Module, abc.ABC):
    r"""An elementwise bijection x = f(z; θ) from latents to data, with P parameters an element.

    The network of a coupling predicts the parameters from the kept half: `P c` channels for c
    transformed channels, the first parameter of all channels, then the second, and so on.

    `RealNVPImage(..., transformer=f)` calls f, a subclass or a function, for a new transformer in
    each coupling. To save your own transformer, decorate f with
    `keras.saving.register_keras_serializable()`. It is saved by its constructor arguments, which
    are its attributes of the same names, or which `get_config` returns.

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

    @property
    @abc.abstractmethod
    def num_parameters(self) -> int:
        """P, the number of parameters of an element; a class attribute in most subclasses."""

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

    def with_values(self, values: Sequence[tf.Tensor]) -> Transformer:
        """Returns a transformer that reads `values` instead of its `variables`."""
        other = copy.copy(self)
        names = {id(value): name for name, value in vars(self).items()}
        for variable, value in zip(self.variables, values, strict=True):
            setattr(other, names[id(variable)], value)
        return other


# A function that returns a new transformer.
TransformerFn = Callable[[], Transformer]
