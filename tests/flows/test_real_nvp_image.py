import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

import tfp_realnvp as tfr
from tfp_realnvp.flows.real_nvp_image import PAPER_CONFIGURATIONS

pytestmark = pytest.mark.quick


def _record(made):
    """A `network_fn` that notes what it was asked for, and makes next to nothing."""

    def network_fn(**kwargs):
        made.append(kwargs)
        return keras.layers.Conv2D(kwargs["output_channels"], 1, name=kwargs["name"])

    return network_fn


_DATASETS_OF_64 = ["imagenet64", "lsun/bedroom", "lsun/tower", "lsun/church_outdoor", "celeb_a"]


@pytest.mark.parametrize(
    ("datasets", "side", "num_scales", "num_blocks", "num_filters"),
    [
        (["cifar10"], 32, 2, 8, 64),
        (["imagenet32"], 32, 4, 4, 32),
        (_DATASETS_OF_64, 64, 5, 2, 32),
    ],
    ids=["cifar10", "imagenet32", "imagenet64"],
)
def test_table_1(datasets, side, num_scales, num_blocks, num_filters):
    made = []
    for dataset in datasets:
        assert PAPER_CONFIGURATIONS[dataset] == PAPER_CONFIGURATIONS[datasets[-1]]
    configuration = {**PAPER_CONFIGURATIONS[datasets[-1]]}
    assert configuration.pop("num_blocks") == num_blocks
    flow = tfr.RealNVPImage(**configuration, network_fn=_record(made))
    assert flow.image_shape == (side, side, 3) and flow.num_scales == num_scales
    # Three checkerboards and three channel masks at each scale, four checkerboards at the last.
    expected = []
    for filters in (num_filters * 2**scale for scale in range(num_scales - 1)):
        expected += [*[(tfr.CheckerboardMask, filters)] * 3, *[(tfr.ChannelMask, 2 * filters)] * 3]
    expected += [(tfr.CheckerboardMask, num_filters * 2 ** (num_scales - 1))] * 4
    assert [(type(each["mask"]), each["num_filters"]) for each in made] == expected
    assert len(PAPER_CONFIGURATIONS) == 7


_SCALES = [((32, 32, 3), 4), ((28, 28, 1), 3), ((5, 5, 3), 1), ((16, 64, 3), 3), ((24, 24, 3), 3)]


@pytest.mark.parametrize(("image_shape", "num_scales"), [*_SCALES, ((30, 15, 1), 1)])
def test_default_number_of_scales(image_shape, num_scales):
    flow = tfr.RealNVPImage(image_shape, num_couplings=1, network_fn=_record([]))
    assert flow.num_scales == num_scales
    side = image_shape[0] // 2 ** (num_scales - 1)
    assert image_shape[0] % 2 ** (num_scales - 1) == 0 and side >= 4


@pytest.mark.parametrize(
    ("image_shape", "num_scales"), [((28, 28, 1), 3), ((30, 30, 1), 2), ((15, 15, 3), 1)]
)
def test_scales_of_sides_that_halve_badly(image_shape, num_scales):
    tiny = {"num_couplings": 1, "num_filters": 2}
    for flow in (
        tfr.RealNVPImage.compact(image_shape, **tiny),
        tfr.RealNVPImage.for_dataset("celeb_a", image_shape=image_shape, num_blocks=0, **tiny),
    ):
        assert flow.num_scales == num_scales
        x = ft.pixels([2, *image_shape])
        np.testing.assert_allclose(flow.forward(flow.inverse(x)), x, rtol=1e-2, atol=0.1)
    with pytest.raises(ValueError, match="num_scales=4"):
        tfr.RealNVPImage.for_dataset("celeb_a", image_shape=image_shape, num_scales=4)


def test_attention_is_for_networks_of_halved_images():
    made = []
    options = {"num_couplings": 1, "attention": 3, "network_fn": _record(made)}
    tfr.RealNVPImage((8, 8, 1), num_scales=3, **options)
    # A checkerboard and a channel-wise coupling of two scales, and two of the last.
    assert [each.get("num_heads") for each in made] == [None, 3, 3, 3, 3, 3]


# Latents by scale.


def _flow(image_shape, **kwargs):
    """A flow with one coupling in a row, of the least networks."""
    return ft.image_flow(image_shape, num_couplings=1, network_fn=ft.convolution, **kwargs)


@pytest.mark.parametrize("batch", [(), (2, 3)], ids=["none", "SB"])
def test_split_and_merge_latents(batch):
    flow = _flow((8, 16, 3), num_scales=3)
    z = ft.normal([*batch, 8, 16, 3])
    by_scale = flow.split_latents(z)
    shapes = [(4, 8, 6), (2, 4, 12), (2, 4, 12)]
    assert [tuple(each.shape) for each in by_scale] == [(*batch, *shape) for shape in shapes]
    np.testing.assert_array_equal(flow.merge_latents(by_scale), z)
    again = flow.split_latents(flow.merge_latents([2 * each for each in by_scale]))
    ft.assert_equal(again, [2 * each for each in by_scale])


def test_split_latents_are_what_was_factored_out(monkeypatch):
    flow = _flow((8, 16, 3), num_scales=3)
    factored_out = []
    original = tfr.FactorOut._inverse_and_log_det

    def spy(self, y, p):
        result = original(self, y, p)
        factored_out.append(tf.split(y, 2, axis=-1)[1])
        return result

    monkeypatch.setattr(tfr.FactorOut, "_inverse_and_log_det", spy)
    *finer, coarsest = flow.split_latents(flow.inverse(ft.pixels([2, 8, 16, 3])))
    # The inner one ends first.
    ft.assert_close(finer, reversed(factored_out), rtol=1e-6)
    assert coarsest.shape == (2, 2, 4, 12)


# Other sizes.


def test_a_model_for_32_scores_and_samples_64():
    flow = _flow((32, 32, 3))
    large = tfd.TransformedDistribution(ft.standard_normal([64, 64, 3]), flow)
    assert large.event_shape == (64, 64, 3)
    log_prob = large.log_prob(ft.pixels([2, 64, 64, 3]))
    assert log_prob.shape == (2,) and np.isfinite(log_prob).all()
    assert large.sample(2, seed=(0, 1)).shape == (2, 64, 64, 3)
    # Convolutions see neighbors only: far from a change nothing changes.
    one = ft.pixels([1, 64, 64, 3]).numpy()
    other = one.copy()
    other[0, 0, 0] = 255 - other[0, 0, 0]
    z, other_z = flow.inverse(one), flow.inverse(other)
    np.testing.assert_array_equal(z[0, 60:, 60:], other_z[0, 60:, 60:])
    assert np.abs(z[0, :8, :8] - other_z[0, :8, :8]).max() > 1e-3


@pytest.mark.parametrize("training", [False, True])
def test_second_derivatives(training):
    options = {"num_scales": 2, "num_couplings": 1, "num_blocks": 0, "attention": 2}
    flow = ft.image_flow((4, 4, 1), alpha=None, dtype=tf.float64, **options)
    state = [variable for variable in flow.variables if not variable.trainable]
    before = [tf.identity(variable) for variable in state]
    images, directions = (ft.normal([3, 4, 4, 1], tf.float64, seed=seed) for seed in (0, 1))

    def squared_gradients(y):
        """Returns the squared gradient by the images, and by the variables."""
        with tf.GradientTape() as tape:
            tape.watch(y)
            z, ildj = flow.inverse_and_log_det(y, training=training)
            loss = tf.reduce_sum(z**3) + tf.reduce_sum(ildj**2)
        by_images, *by_variables = tape.gradient(loss, [y, *flow.trainable_variables])
        ft.assign(state, before)
        return [tf.reduce_sum(by_images**2), sum(tf.reduce_sum(g**2) for g in by_variables)]

    with tf.GradientTape(persistent=True) as tape:
        tape.watch(images)
        values = squared_gradients(images)
    after, earlier = (squared_gradients(images + step * directions) for step in (1e-6, -1e-6))
    for value, high, low in zip(values, after, earlier, strict=True):
        along = tf.reduce_sum(tape.gradient(value, images) * directions)
        assert abs(along) > 1
        np.testing.assert_allclose(along, (high - low) / 2e-6, rtol=1e-5)


def test_compact():
    flow = tfr.RealNVPImage.compact((8, 8, 3), num_filters=4, attention=2)
    assert flow.num_scales == 3 and flow.image_shape == (8, 8, 3)
    parts = list(flow.submodules)
    couplings = [part for part in parts if isinstance(part, tfr.AffineCoupling)]
    assert {type(part.network) for part in couplings} == {tfr.ShallowConv}
    # The two split priors have a coupling only.
    assert len(couplings) == 25 and len([c for c in couplings if "_prior" in c.name]) == 2
    for kind in (tfr.ActNorm, tfr.InvertibleConv1x1):
        assert sum(isinstance(part, kind) for part in parts) == 23
    for part in couplings:
        expected = 0 if part.name.startswith("scale0_checkerboard") else 2
        assert part.network.num_heads == expected, part.name
    # Zero networks: rotations of the channels but for the normalization and the logit.
    y = ft.pixels([2, 8, 8, 3])
    x, ildj = flow.inverse_and_log_det(tf.identity(y))
    logits, ildj_of_logit = tfr.PixelLogit(0.4).inverse_and_log_det(y)
    norms = [np.linalg.norm(np.reshape(each, [2, -1]), axis=1) for each in (x, logits)]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    np.testing.assert_allclose(ildj, ildj_of_logit, rtol=1e-5)
    assert np.abs(x - logits).max() > 0.1


def test_the_logit_of_compact():
    options = {"num_filters": 4, "num_couplings": 1}
    for channels, alpha in ((3, 0.4), (1, 0.05), (4, 0.05)):
        flow = tfr.RealNVPImage.compact((8, 8, channels), **options)
        assert flow.bijectors[0] == tfr.PixelLogit(alpha)
    flow = tfr.RealNVPImage.compact((8, 8, 3), alpha=None, **options)
    assert flow.num_values is None


def test_additive_couplings_have_the_log_det_of_the_rest():
    flow = _flow((4, 4, 3), transformer="additive", normalization=None, alpha=None)
    ildj = flow.inverse_log_det_jacobian(ft.normal([2, 4, 4, 3]), event_ndims=3)
    np.testing.assert_array_equal(ildj, [0, 0])
    # A constant log det, but no affine map: TFP would push the base's mean through it.
    distribution = tfd.TransformedDistribution(ft.standard_normal((4, 4, 3)), flow)
    for moment in (distribution.mean, distribution.entropy):
        with pytest.raises(NotImplementedError):
            moment()


def test_default_is_the_papers_architecture_to_the_last_bit():
    # `test_table_1` checks the other scales.
    def layers(masks, channels, filters):
        bijectors = []
        for mask in masks:
            is_board = isinstance(mask, tfr.CheckerboardMask)
            outputs, parity = 2 * mask.changed_channels(channels), mask.parity if is_board else None
            network = tfr.ConvResNet(outputs, 1, filters, checkerboard_parity=parity)
            network.build((None, None, None, channels if is_board else channels // 2))
            bijectors.append(tfr.AffineCoupling(mask, network))
            bijectors.append(tfr.BatchNormalization(0.9, num_channels=channels))
        return bijectors

    keras.utils.set_random_seed(3)
    flow = tfr.RealNVPImage((8, 8, 3), num_scales=2, num_blocks=1, num_filters=4)
    keras.utils.set_random_seed(3)
    fine = layers([tfr.CheckerboardMask(i) for i in (0, 1, 0)], 3, 4)
    channelwise = layers([tfr.ChannelMask(i) for i in (0, 1, 0)], 12, 8)
    coarse = layers([tfr.CheckerboardMask(i) for i in (0, 1, 0, 1)], 6, 8)
    squeeze, other = tfr.Squeeze(), tfr.Squeeze(order="factor_out")
    inner = [tfb.Invert(other), tfr.FactorOut(tfr.FlowChain(coarse)), other]
    parts = [*fine, tfb.Invert(squeeze), *channelwise, squeeze, *inner]
    by_hand = tfr.FlowChain([tfr.PixelLogit(), *parts])
    y = ft.pixels([2, 8, 8, 3])
    for training in (True, False):
        results = [each.inverse_and_log_det(y, training=training) for each in (flow, by_hand)]
        ft.assert_equal(*results)
        assert np.abs(results[0][0] - y).max() > 1
