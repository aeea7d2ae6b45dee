"""Affine and additive coupling layers with any network as their conditioner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from tfp_realnvp.bijectors.coupling import Coupling
from tfp_realnvp.bijectors.masks import Mask
from tfp_realnvp.bijectors.transformers import Additive, Affine
from tfp_realnvp.internal import validation

__all__ = ["AffineCoupling"]


class AffineCoupling(Coupling):
    r"""A `Coupling` with the transformer `Affine` or `Additive`.

    With the mask `b` and `c` channels in the transformed half, the network maps `b * z` to `2c`
    channels: the shift `t`, and the argument of tanh in the log scale `s = scale * tanh(.)`:

    ```
    forward (latent -> data):  x = b * z + (1 - b) * (z - t(b * z)) * exp(-s(b * z))
    inverse (data -> latent):  z = b * x + (1 - b) * (x * exp(s(b * x)) + t(b * x))       (eq. 9)
    ildj = sum((1 - b) * s)
    ```

    #### Example

    >>> import keras, tensorflow as tf, tfp_realnvp as tfr
    >>> network = keras.Sequential([
    ...     keras.Input([None, None, 3]),
    ...     keras.layers.Conv2D(8, 3, padding='same', activation='relu'),
    ...     keras.layers.Conv2D(6, 3, padding='same')])
    >>> coupling = tfr.AffineCoupling(tfr.CheckerboardMask(0), network)
    >>> z, ildj = coupling.inverse_and_log_det(tf.random.normal([5, 4, 4, 3]))
    >>> z.shape, ildj.shape, len(coupling.trainable_variables)
    (TensorShape([5, 4, 4, 3]), TensorShape([5]), 5)

    #### References

    Dinh, Sohl-Dickstein, Bengio: Density estimation using Real NVP, sections 3.2 to 3.4, eq. 7-9.
    Dinh, Krueger, Bengio: NICE, section 3.2, for the additive coupling.
    """

    def __init__(
        self,
        mask: Mask,
        network: Callable[..., tf.Tensor],
        *,
        use_scale: bool = True,
        scale: float | tf.Variable | None = None,
        conditional_event_shape: Sequence[int | None] | None = None,
        event_ndims: int = 3,
        dtype: Any = tf.float32,
        validate_args: bool = False,
        name: str = "affine_coupling",
    ) -> None:
        """Constructs the coupling.

        Args:
          network: as in `Coupling`. Its output is [B, H, W, 2c], first `t`, then the argument of
            tanh; [B, H, W, c] without `use_scale`.
          use_scale: `False` gives the additive coupling of NICE: `s = 0`, a log det of zero.
          scale: the initial value of the trainable scale of tanh, by default 1, or the variable
            itself. Only with `use_scale`.
          mask, conditional_event_shape, event_ndims, dtype, validate_args, name: as in `Coupling`.

        Raises:
          TypeError: if `scale` is neither a number nor a variable, or as in `Coupling`.
          ValueError: if `scale` is not finite, or given without `use_scale`, or as in `Coupling`.
        """
        parameters = dict(locals())
        validation.flag(use_scale, f"{name}: expected a bool as use_scale")
        expected = f"{name}: expected a scale only with use_scale=True"
        validation.require(use_scale or scale is None, expected, scale)
        with tf.name_scope(name):
            transformer = (
                Affine(1.0 if scale is None else scale, dtype) if use_scale else Additive()
            )
        # A copy shares the variable, as it shares the network.
        parameters["scale"] = getattr(transformer, "scale", None)
        super().__init__(
            mask,
            network,
            transformer,
            conditional_event_shape=conditional_event_shape,
            event_ndims=event_ndims,
            dtype=dtype,
            validate_args=validate_args,
            parameters=parameters,
            name=name,
        )

    @property
    def scale(self) -> tf.Variable | None:
        """The learned scale of tanh; `None` for an additive coupling."""
        return getattr(self._transformer, "scale", None)
