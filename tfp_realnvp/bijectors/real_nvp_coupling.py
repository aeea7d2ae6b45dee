"""Couplings whose network returns a bijector, with the arguments of `tfb.RealNVP`."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow_probability import bijectors as tfb

from tfp_realnvp.bijectors.coupling import NetworkCoupling
from tfp_realnvp.bijectors.flow_bijector import Mapped, Pass
from tfp_realnvp.bijectors.flow_chain import call_part
from tfp_realnvp.bijectors.masks import ChannelMask, CheckerboardMask, Mask
from tfp_realnvp.internal import validation
from tfp_realnvp.internal.batch_dims import flatten_batch, unflatten_batch


class BijectorCoupling(NetworkCoupling):
    r"""A coupling whose network returns the bijector of the changed half.

    ```
    forward (latent -> data):  x = b * z + (1 - b) * bijector(b * z).forward(z)
    ```

    with the mask `b`. The network can also return `(shift, log_scale)`, for
    `x = z exp(log_scale) + shift`. A network that is a function also receives the number of changed
    channels; a Keras layer does not. `real_nvp_coupling` constructs such a coupling of vectors.

    #### Example

    >>> import keras, tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> network = keras.layers.Conv2D(2, 3, padding='same')
    >>> coupling = tfr.BijectorCoupling(
    ...     tfr.ChannelMask(), lambda kept, channels: tfp.bijectors.Shift(network(kept)))
    >>> z, ildj = coupling.inverse_and_log_det(tf.random.normal([5, 4, 4, 4]))
    >>> z.shape, ildj.shape
    (TensorShape([5, 4, 4, 4]), TensorShape([5]))

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, section 3.2.
    """

    # The variables that the network read in its first call.
    _read_variables: Sequence[tf.Variable] | None = None

    def __init__(
        self,
        mask: Mask,
        network: Callable[..., Any],
        *,
        conditional_event_shape: Sequence[int | None] | None = None,
        event_ndims: int = 3,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "coupling",
    ) -> None:
        """Constructs the coupling.

        Args:
          mask: a mask whose changed half contains no kept positions, such as a `ChannelMask`.
          network: see above.
          conditional_event_shape, event_ndims, dtype, validate_args, name: as in `Coupling`.

        Raises:
          TypeError, ValueError: as in `Coupling`, or if the mask is a `CheckerboardMask`.
        """
        parameters = dict(locals())
        expected = f"{name}: expected a mask whose changed half is without kept positions"
        validation.require(not isinstance(mask, CheckerboardMask), expected, mask)
        super().__init__(mask, network, conditional_event_shape, event_ndims, parameters, name)

    @property
    def is_built(self) -> bool:
        """Whether the network's variables exist and the coupling tracks them."""
        return self._read_variables is not None and super().is_built

    def _pass(self, event: tf.Tensor, p: Pass, inverse: bool) -> Mapped:
        expected = f"{self.name}: expected a coupling with a transformer for guidance"
        validation.require(p.no_condition is None, expected, type(self).__name__)
        kept, changed = self.mask.split(event)
        bijector = self._bijector(kept, changed, p)
        ndims, inner = self.event_ndims, p.but(condition=None, observer=None, terms=None)
        results = call_part(bijector, flatten_batch(changed, ndims), inner, inverse, ndims)
        values, log_det = (unflatten_batch(part, changed, ndims) for part in results)
        return self.mask.merge(kept, values), log_det

    _forward_and_log_det = functools.partialmethod(_pass, inverse=False)
    _inverse_and_log_det = functools.partialmethod(_pass, inverse=True)

    def _bijector(self, kept: tf.Tensor, changed: tf.Tensor, p: Pass) -> tfb.Bijector:
        """Returns the network's bijector, or an affine bijector from its shift and log scale."""
        # A Keras layer takes only tensors, so it does not receive the number of channels.
        others = [] if self.layers else [changed.shape[-1]]
        is_first = self._read_variables is None
        with tf.GradientTape() if is_first else contextlib.nullcontext() as tape:
            output = self._output(kept, changed, p, *others)
        if is_first:
            self._read_variables = tape.watched_variables()
        if isinstance(output, tfb.Bijector):
            return output
        expected = f"{self.name}: expected a bijector or (shift, log_scale) from the network"
        is_pair = isinstance(output, (tuple, list)) and len(output) == 2
        validation.require(is_pair, f"{expected} of a coupling without a transformer", output)
        shift, log_scale = (tf.cast(0 if x is None else x, self.dtype) for x in output)
        return tfb.Chain([tfb.Shift(shift), tfb.Scale(log_scale=log_scale)])


def real_nvp_coupling(
    num_masked: int | None = None,
    fraction_masked: float | None = None,
    shift_and_log_scale_fn: Callable[..., Any] | None = None,
    bijector_fn: Callable[..., Any] | None = None,
    **options: Any,
) -> BijectorCoupling:
    r"""Returns a coupling of vectors [..., D] with the arguments of `tfb.RealNVP`.

    The coupling keeps d elements and changes D - d:

    ```
    shift, log_scale = shift_and_log_scale_fn(z[kept], D - d)
    forward (latent -> data):  x[kept] = z[kept],  x[changed] = z[changed] * exp(log_scale) + shift
    ```

    With a `bijector_fn`, `x[changed] = bijector_fn(z[kept], D - d).forward(z[changed])`.

    The coupling gives the same densities as `tfb.RealNVP`. In `log_prob`, `tfb.RealNVP` calls the
    function twice, but this coupling only once. The kept elements have the shape [B, d].

    If the function is a Keras layer or a `tf.Module`, the coupling tracks all of its variables. For
    any other function, such as `tfb.real_nvp_default_template`, the coupling tracks the variables
    that the first call reads. To freeze or save a network, pass it as a Keras layer.

    #### Example

    >>> import keras, tensorflow as tf, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> network = keras.Sequential([keras.layers.Dense(8, 'tanh'), keras.layers.Dense(2)])
    >>> def shift_and_log_scale(x, output_units):
    ...   return tf.split(network(x), 2, axis=-1)
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [3]),
    ...     tfr.real_nvp_coupling(num_masked=2, shift_and_log_scale_fn=shift_and_log_scale))
    >>> flow.log_prob(flow.sample(5)).shape, len(flow.trainable_variables)
    (TensorShape([5]), 4)

    Args:
      num_masked: number of elements to keep: the first ones, or the last ones if negative.
      fraction_masked: instead of `num_masked`, a fraction of D in (-1, 1).
      shift_and_log_scale_fn: a function that takes the kept elements [B, d] and the number D - d,
        or a Keras layer that takes only the elements. The function returns the shift and the log
        scale. Both must broadcast to [B, D - d]; `None` stands for zeros.
      bijector_fn: instead of `shift_and_log_scale_fn`, a function that takes the same arguments and
        returns a `tfb.Bijector` on vectors [B, D - d].
      **options: `conditional_event_shape`, `dtype`, `validate_args` and `name`, as in `Coupling`.
        The function receives the condition as its argument `conditional_input`.

    Raises:
      TypeError, ValueError: if an argument is out of range or not a function, or if both or neither
        of two alternative arguments are given.

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, sections 3.2 and 3.3.
    """
    masked = [x for x in (num_masked, fraction_masked) if x is not None]
    functions = [f for f in (shift_and_log_scale_fn, bijector_fn) if f is not None]
    expected = "real_nvp_coupling: expected one of num_masked and fraction_masked, and one *_fn"
    validation.require(len(masked) == len(functions) == 1, expected, (masked, functions))
    expected = "real_nvp_coupling: expected |num_masked| of at least 1 or |fraction_masked| below 1"
    is_share = fraction_masked is not None
    validation.require((abs(masked[0]) < 1) == is_share, expected, masked[0])
    mask = ChannelMask(int(masked[0] < 0), num_first=masked[0])
    return BijectorCoupling(mask, functions[0], event_ndims=1, **options)
