"""The base class of this package's conditioners."""

import inspect
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfp_realnvp.condition_spec import checked_condition_shape
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.checkerboard import check_parity, checkerboard


class Conditioner(keras.layers.Layer):
    r"""A network that predicts a coupling's parameters [B, H, W, K] from [B, H, W, C].

    Networks on vectors map [B, C] to [B, K]. The network of a coupling can be any Keras layer. This
    base class of the package's networks handles output channels, condition and checkerboard. In a
    checkerboard coupling half of the input is masked to zero. The board, an additional input
    channel, lets the network distinguish masked pixels from zeros.

    A network with a `conditional_event_shape` takes a `conditional_input`, a vector or image per
    event. The weights that multiply the condition start at zero.

    #### Example

    >>> import keras, tensorflow as tf, tfp_realnvp as tfr
    >>> class OneByOne(tfr.Conditioner):
    ...   def build(self, input_shape):
    ...     self.conv = keras.layers.Conv2D(self.output_channels, 1)
    ...     self.conv.build((*input_shape[:-1], input_shape[-1] + 1))
    ...   def call(self, inputs):
    ...     return self.conv(self.with_board(inputs))
    >>> OneByOne(6, checkerboard_parity=0)(tf.ones([2, 4, 4, 3])).shape
    TensorShape([2, 4, 4, 6])

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.4.
    """

    # Whether `checkerboard_parity` has an effect.
    _uses_board = True

    def __init__(
        self,
        output_channels: int,
        *,
        checkerboard_parity: int | None = None,
        conditional_event_shape: Sequence[int | None] | None = None,
        **kwargs: Any,
    ) -> None:
        """Constructs the network.

        Args:
          output_channels: K.
          checkerboard_parity: parity of the coupling's `CheckerboardMask`; `None` for other masks.
          conditional_event_shape: shape of one `conditional_input`, [E] or [H, W, E], where H and W
            can be `None`; `None` without a condition.
          **kwargs: `name`, `dtype`, as in `keras.layers.Layer`.

        Raises:
          TypeError, ValueError: if an argument is invalid or has no effect.
        """
        super().__init__(**kwargs)
        self.output_channels = validation.count(output_channels, "output_channels", 1, self.name)
        if checkerboard_parity is not None:
            kind, expected = type(self).__name__, f"{self.name}: expected no checkerboard_parity"
            expected = f"{expected}, which a {kind} does not use"
            validation.require(self._uses_board, expected, checkerboard_parity)
            checkerboard_parity = check_parity(checkerboard_parity)
        self.checkerboard_parity = checkerboard_parity
        if conditional_event_shape is not None:
            conditional_event_shape = checked_condition_shape(conditional_event_shape)
        self.conditional_event_shape = conditional_event_shape
        # Whether the condition is a vector or an image.
        ndims = len(conditional_event_shape or ())
        self.takes_vector, self.takes_image = ndims == 1, ndims == 3

    def required(self, condition: tf.Tensor | None) -> tf.Tensor:
        """Returns the condition; raises `ValueError` if it is `None`."""
        expected = f"{self.name}: expected a conditional_input [batch, ...] with events of shape "
        expected += str(self.conditional_event_shape)
        validation.require(condition is not None, expected, condition)
        return condition

    def with_board(self, inputs: tf.Tensor) -> tf.Tensor:
        """Appends the board as a channel, [B, H, W, C + 1], if `checkerboard_parity` is set."""
        if self.checkerboard_parity is None:
            return inputs
        board = checkerboard(inputs, self.checkerboard_parity)
        return tf.concat([inputs, tf.broadcast_to(board, tf.shape(inputs[..., :1]))], axis=-1)

    def at_changed_positions(self, outputs: tf.Tensor) -> tf.Tensor:
        """Sets outputs to zero at positions that a checkerboard coupling keeps."""
        if self.checkerboard_parity is None:
            return outputs
        return outputs * (1 - checkerboard(outputs, self.checkerboard_parity))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Returns the shape of the output for inputs of `input_shape`."""
        return (*input_shape[:-1], self.output_channels)

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor arguments, read from attributes of the same names."""
        kinds = [kind for kind in type(self).__mro__ if issubclass(kind, Conditioner)]
        names = [name for kind in kinds for name in inspect.signature(kind.__init__).parameters]
        arguments = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return {**arguments, **super().get_config()}

    @property
    def _nested_options(self) -> dict[str, Any]:
        # Keras does not pass a `trainable=False` of the constructor on to nested layers.
        return {"dtype": self.dtype_policy, "trainable": self.trainable}

    def _weight(
        self, name: str, shape: Sequence[int], initializer: Any = "zeros", **kwargs: Any
    ) -> keras.Variable:
        # `autocast=False` keeps full precision when the layer computes in half precision.
        return self.add_weight(shape, initializer, name=name, **{"autocast": False, **kwargs})

    def _add_film(self, num_terms: int, num_filters: int) -> None:
        if self.takes_vector:
            shape = [*self.conditional_event_shape, num_terms, num_filters]
            self.condition_kernel = self._weight("condition_kernel", shape)

    def _film(self, condition: tf.Tensor | None, num_terms: int) -> list[tf.Tensor] | list[None]:
        """Returns `num_terms` linear functions [B, F] of a condition vector, `None` without one."""
        if not self.takes_vector:
            return [None] * num_terms
        kernel = tf.convert_to_tensor(self.condition_kernel.value)
        terms = tf.tensordot(tf.cast(self.required(condition), kernel.dtype), kernel, 1)
        return tf.unstack(tf.cast(terms, self.compute_dtype), axis=1)

    def _shifted_biases(
        self, condition: tf.Tensor | None, *biases: keras.Variable
    ) -> list[tf.Tensor]:
        """Returns the biases [F] of convolutions, shifted by functions of a condition vector.

        With a condition vector, each result is [B, 1, 1, F]. A convolution that adds such a bias
        costs as much as a convolution that adds [F].
        """
        values, terms = map(tf.convert_to_tensor, biases), self._film(condition, len(biases))
        return [
            value if term is None else tf.cast(value, term.dtype) + term[:, None, None]
            for value, term in zip(values, terms, strict=True)
        ]
