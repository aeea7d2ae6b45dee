"""`Transformer`, the base class, and transformers that shift, or shift and scale, a value.

A transformer is the elementwise bijection of a coupling; a network predicts its parameters.
"""

import abc
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.internal import configurable, validation


class Transformer(configurable.Configurable, keras.layers.Layer, abc.ABC):
    r"""An elementwise bijection x = f(z; θ) from latents to data, with P parameters per element.

    For c transformed channels, the coupling's network outputs `P c` channels: the first parameter
    of all transformed channels, then the second parameter of all, and so on.

    `RealNVPImage(..., transformer=f)` calls f, a `Transformer` subclass or a function, to create
    the transformer of each coupling. A transformer is a Keras layer; its constructor creates
    variables with `add_weight`. To save your own transformer, decorate f with
    `keras.saving.register_keras_serializable()`. Store each constructor argument as an attribute of
    the same name, or override `get_config`.

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
          x: data, [..., H, W, c], or for vectors [..., c].
          parameters: [..., H, W, P c], or for vectors [..., P c].
        """

    @abc.abstractmethod
    def forward(self, z: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x and log |dx/dz| of each element; see `inverse`."""


# A function that returns a new transformer.
TransformerFn = Callable[[], Transformer]


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class Additive(Transformer):
    """`z = x + θ`. The log det is zero.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> z, _ = tfr.Additive().inverse(tf.constant([2.0]), tf.constant([1.0]))
    >>> z.numpy().tolist()
    [3.0]

    #### References

    Dinh, Krueger, Bengio: NICE, section 3.2.
    """

    num_parameters = 1
    is_identity_at_zero = True

    def __init__(self) -> None:
        super().__init__(name="additive")

    def inverse(self, x: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns z and zeros."""
        return x + parameters, tf.zeros_like(x)

    def forward(self, z: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x and zeros."""
        return z - parameters, tf.zeros_like(z)


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class Affine(Transformer):
    r"""`z = x exp(s) + t` with `t = θ₁`, `s = scale * tanh(θ₂)` and a trainable `scale` (eq. 9).

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> z, log_det = tfr.Affine().inverse(tf.constant([[2.0]]), tf.constant([[1.0, 0.0]]))
    >>> z.numpy().tolist(), log_det.numpy().tolist()
    ([[3.0]], [[0.0]])

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.2 and 4.1.
    """

    num_parameters = 2
    is_identity_at_zero = True

    def __init__(self, scale: keras.Variable | float = 1.0, dtype: Any = tf.float32) -> None:
        """Constructs the transformer.

        Args:
          scale: the trainable factor of tanh: a scalar variable, or its initial value.
          dtype: dtype of the variable.

        Raises:
          TypeError, ValueError: if `scale` is neither a finite number nor a scalar variable of
            `dtype`.
        """
        super().__init__(name="affine")
        dtype = validation.float_dtype(dtype, "Affine")
        expected = f"Affine: expected a number or a scalar {dtype.name} keras.Variable as scale"
        if not isinstance(scale, keras.Variable):
            validation.real(scale, lambda number: abs(number) <= dtype.max, expected)
            options = {"dtype": dtype.name, "autocast": False, "aggregation": "mean"}
            scale = self.add_weight((), keras.initializers.Constant(scale), name="scale", **options)
        is_valid = scale.dtype == dtype.name and scale.shape == ()
        validation.require(is_valid, expected, scale, TypeError)
        self.scale = scale

    def get_config(self) -> dict[str, Any]:
        """Returns constructor arguments that make an equal transformer with a new variable."""
        return {"scale": float(self.scale.numpy()), "dtype": tf.as_dtype(self.scale.dtype)}

    def inverse(self, x: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns z and s."""
        shift, log_scale = self._shift_and_log_scale(parameters)
        # The gradient of `add_n` is cheaper than the gradient of `+`, which can broadcast.
        return tf.add_n([x * tf.exp(log_scale), shift]), log_scale

    def forward(self, z: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x and -s."""
        shift, log_scale = self._shift_and_log_scale(parameters)
        return (z - shift) * tf.exp(-log_scale), -log_scale

    def _shift_and_log_scale(self, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        shift, log_scale = tf.split(parameters, 2, axis=-1)
        return shift, self.scale.value * tf.tanh(log_scale)


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class SigmoidAffine(Transformer):
    r"""`z = (x + θ₁) · 2σ(θ₂)`, the identity for parameters of zero.

    The log det of an element is `log 2 + log σ(θ₂)`.

    #### Example

    >>> import tensorflow as tf, tfp_realnvp as tfr
    >>> z, log_det = tfr.SigmoidAffine().inverse(tf.constant([[2.0]]), tf.constant([[1.0, 0.0]]))
    >>> z.numpy().tolist(), log_det.numpy().tolist()
    ([[3.0]], [[0.0]])

    #### References

    Kolesnikov, Pinto, Tschannen: Jet: a modern transformer-based normalizing flow.
    """

    num_parameters = 2

    def __init__(self) -> None:
        super().__init__(name="sigmoid_affine")

    def inverse(self, x: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns z and the log scale."""
        shift, scale, log_scale = _shift_and_scale(parameters)
        return (x + shift) * scale, log_scale

    def forward(self, z: tf.Tensor, parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns x and the negative log scale."""
        shift, scale, log_scale = _shift_and_scale(parameters)
        return z / scale - shift, -log_scale


def _shift_and_scale(parameters: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns shift, scale and log scale, accurate even for small scales."""
    shift, logit = tf.split(parameters, 2, axis=-1)
    return shift, 2 * tf.sigmoid(logit), math.log(2) + tf.math.log_sigmoid(logit)
