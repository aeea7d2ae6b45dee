"""What TFP's wrapper constructors really return.

`tfb.Invert(b)` is no `tfb.Invert` unless `b` is a composite tensor, which a bijector with networks
is not: the constructor gives a private base class. The same goes for `tfb.Chain`,
`tfd.TransformedDistribution` and `tfd.Independent`. `isinstance` wants these bases.
"""

from tensorflow_probability.python.bijectors.chain import _Chain as Chain
from tensorflow_probability.python.bijectors.invert import _Invert as Invert
from tensorflow_probability.python.distributions.independent import _Independent as Independent
from tensorflow_probability.python.distributions.transformed_distribution import (
    _TransformedDistribution as TransformedDistribution,
)

__all__ = ["Chain", "Independent", "Invert", "TransformedDistribution"]
