"""Log densities by position: what they sum up to, and that each share is at its place."""

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr

tfb, tfd = tfp.bijectors, tfp.distributions

pytestmark = pytest.mark.eager

_SHAPE = (4, 4, 2)


def maps_of(distribution, values, *args, **kwargs):
    """Returns maps of continuous values, without noise."""
    model = tfr.FlowModel(distribution, dequantize=False)
    return tfr.log_prob_map(model, values.numpy(), *args, **kwargs)


def flow(**kwargs):
    return ft.flow_distribution(_SHAPE, network_fn=ft.convolution, **kwargs)


def chain():
    """Returns a flow with bijectors of TFP, and with the inverse of each kind of ours."""
    inverses = [tfr.ActNorm(num_channels=2), ft.coupling(tfr.CheckerboardMask(1), 2)]
    inverses += [tfr.BatchNormalization(num_channels=2), tfr.InvertibleConv1x1(2)]
    parts = [tfb.Scale(64.0), tfb.Softplus(), tfb.Permute([1, 0]), tfb.Chain([tfb.Shift(1.0)])]
    parts += [tfr.FlowChain([]), *map(tfb.Invert, [*inverses, tfr.PixelLogit(num_values=9)])]
    return tfd.TransformedDistribution(
        tfd.Independent(tfd.Normal(tf.linspace(0.0, 1.0, 2), tf.fill(_SHAPE, 2.0)), 3),
        ft.randomize(tfr.FlowChain(parts)),
    )


_ADDITIONS = {"normalization": "actnorm", "invertible_conv": True, "split_prior": True}
_ADDITIONS["transformer"] = "rational_quadratic_spline"


@pytest.mark.parametrize(
    "make",
    [
        lambda: flow(num_couplings=1),
        lambda: flow(num_couplings=1, dtype=tf.float64, **_ADDITIONS),
        chain,
        # Gaussians of positions, whose channels are dependent.
        lambda: tfd.TransformedDistribution(
            tfd.Sample(tfd.MultivariateNormalTriL(scale_tril=[[2.0, 0.0], [1.0, 1.0]]), [4, 4]),
            tfb.Scale(99.0),
        ),
        # No bijector, and the inverse of a flow.
        lambda: tfd.Sample(tfd.Normal(100.0, 50.0), _SHAPE),
        lambda: tfd.TransformedDistribution(
            tfd.Sample(tfd.Normal(0.0, 99.0), _SHAPE),
            tfb.Invert(ft.randomize(tfr.FlowChain([ft.coupling(tfr.CheckerboardMask(1), 2)]))),
        ),
    ],
    ids=["paper", "compact", "chain", "gaussian", "base", "inverse"],
)
def test_the_sum_is_the_log_density(make):
    distribution = make()
    x = ft.pixels((3, *_SHAPE), distribution.dtype)
    maps = maps_of(distribution, x)
    assert maps.shape == (3, 4, 4) and np.isfinite(maps).all()
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), distribution.log_prob(x), rtol=2e-6)


@pytest.mark.graph
def test_the_sum_is_the_log_density_given_a_condition():
    base = ft.class_base(tf.reshape([0.0, 1.0, -1.0], [3, 1, 1, 1]) + tf.zeros(_SHAPE))
    options = {"num_scales": 1, "num_couplings": 1, "network_fn": ft.shallow_conv}
    bijector = ft.image_flow(_SHAPE, num_classes=3, **options)
    model = tfr.FlowModel(tfd.TransformedDistribution(base, bijector))
    images, labels = ft.grey_levels(5, _SHAPE), np.array([0, 1, 2, 1, 0])
    maps = tfr.log_prob_map(model, images, labels, batch_size=2)
    log_prob = tfr.log_prob(model, images, labels, batch_size=2)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), log_prob, rtol=2e-6)


def test_the_density_of_learned_noise_is_a_part():
    noise = ft.randomize(tfr.VariationalDequantization(_SHAPE, num_couplings=1, num_filters=4))
    model = tfr.FlowModel(flow(num_couplings=1), dequantizer=noise)
    images = ft.grey_levels(3, _SHAPE)
    maps = tfr.log_prob_map(model, images)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), tfr.log_prob(model, images), rtol=2e-6)


@pytest.fixture(scope="module")
def blocks():
    """A flow that transforms each block of 8×8 pixels alone, as all of its networks are 1×1."""

    def pointwise(*, input_channels, output_channels, **_):
        layer = keras.layers.Conv2D(output_channels, 1)
        layer.build((None, None, None, input_channels))
        return layer

    options = {"num_couplings": 1, "normalization": "actnorm", "invertible_conv": True}
    return ft.image_flow((None, None, 2), num_scales=3, network_fn=pointwise, **options)


@pytest.mark.graph
@pytest.mark.parametrize("log_dets", [True, *ft.full(False)])
def test_each_share_is_at_its_place(blocks, log_dets):
    x = ft.pixels((2, 8, 16, 2))
    distribution = tfd.TransformedDistribution(ft.standard_normal([8, 16, 2]), blocks)
    maps = maps_of(distribution, x, log_dets=log_dets)
    for part, share in zip(tf.split(x, 2, axis=2), np.split(maps, 2, axis=2), strict=True):
        latents, ildj = blocks.inverse_and_log_det(part)
        expected = ft.standard_normal([8, 8, 2]).log_prob(latents) + (ildj if log_dets else 0.0)
        np.testing.assert_allclose(share.sum(axis=(1, 2)), expected, rtol=1e-5)


@pytest.mark.graph
def test_latents_cover_their_blocks(blocks):
    """Each scale's latents are spread over the pixels that one of its positions covers."""
    x = ft.pixels((1, 4, 4, 2))
    distribution = tfd.TransformedDistribution(ft.standard_normal([4, 4, 2]), blocks)
    [shares] = maps_of(distribution, x, log_dets=False)
    finest, middle, coarsest = (
        tf.reduce_sum(tfd.Normal(0.0, 1.0).log_prob(z), [0, 3]).numpy()
        for z in blocks.split_latents(blocks.inverse(x))
    )
    expected = np.kron(finest, np.ones([2, 2])) / 4 + (middle + coarsest) / 16
    np.testing.assert_allclose(shares, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "mask",
    [tfr.CheckerboardMask(1), tfr.SpatialMask("checkerboard"), tfr.SpatialMask("vertical_stripes")],
    ids=str,
)
def test_log_dets_are_at_the_changed_positions(mask):
    halved = mask.changed_channels(2)

    def network(x):
        return 1.0 + tf.random.stateless_uniform([*x.shape[:-1], 2 * halved], (0, 1))

    bijector = tfr.Coupling(mask, network, tfr.SigmoidAffine())
    distribution = tfd.TransformedDistribution(ft.standard_normal(_SHAPE), bijector)
    x = ft.pixels((1, *_SHAPE))
    [log_dets] = maps_of(distribution, x) - maps_of(distribution, x, log_dets=False)
    changed = np.abs(bijector.inverse(x) - x).sum(axis=(0, 3)) > 0
    assert changed.sum() == 8
    np.testing.assert_array_equal(np.abs(log_dets) > 1e-3, changed)


_NORMAL = ft.standard_normal(_SHAPE)


class Doubled(tfr.FlowBijector):
    """A user's bijector that sums its log det by itself."""

    def __init__(self, name="doubled"):
        super().__init__(parameters=dict(locals()), name=name)

    def _forward_and_log_det(self, x, p):
        return 2 * x, tf.fill(tf.shape(x)[:-3], 32 * np.log(2.0).astype(np.float32))

    def _inverse_and_log_det(self, y, p):
        return y / 2, tf.fill(tf.shape(y)[:-3], -32 * np.log(2.0).astype(np.float32))


@pytest.mark.parametrize(
    ("base", "bijector", "error", "message"),
    [
        (_NORMAL, tfr.FlowChain([Doubled()]), ValueError, "doubled: .*`_sum_over_event`"),
        (_NORMAL, tfb.Chain([tfr.PixelLogit()]), ValueError, "chain.*: .*FlowChain` instead of"),
        (ft.standard_normal([3]), None, ValueError, r"model of images, got TensorShape\(\[3\]\)"),
        (
            tfd.MixtureSameFamily(
                tfd.Categorical([0.0, 1.0]),
                tfd.Independent(tfd.Normal(tf.zeros([2, *_SHAPE]), 1), 3),
            ),
            None,
            TypeError,
            r"as base, such as `tfd.Sample\(tfd.Normal.*MixtureSameFamily",
        ),
    ],
)
def test_distributions_without_positions(base, bijector, error, message):
    distribution = tfd.TransformedDistribution(base, bijector) if bijector is not None else base
    with pytest.raises(error, match=message):
        tfr.log_prob_map(distribution, ft.grey_levels(1, _SHAPE))
