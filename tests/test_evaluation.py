import json
import math

import flow_testing as ft
import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_probability as tfp

import tfp_realnvp as tfr
from tfp_realnvp import evaluation

tfd = tfp.distributions

_SHAPE = (8, 8, 1)
_IMAGES = ft.grey_levels(11, _SHAPE)
_DIMS = math.prod(_SHAPE)


@pytest.fixture(scope="module")
def flow():
    keras.utils.set_random_seed(0)
    return ft.flow_distribution(_SHAPE, num_couplings=1)


def _by_hand(distribution, images, num_draws, seed, batch_size):
    """Log densities [K, N], with an independent implementation of the noise."""
    log_prob = []
    for draw in range(num_draws):
        row = []
        for number, start in enumerate(range(0, len(images), batch_size), start=1):
            pair = tf.constant([seed ^ 0x5EED, number])
            if draw:
                pair = tf.random.experimental.stateless_fold_in(pair, draw)
            batch = images[start : start + batch_size].astype(np.float32)
            noise = tf.random.stateless_uniform(batch.shape, seed=pair)
            row.append(distribution.log_prob(batch + tf.minimum(noise, 1 - 2.0**-11)).numpy())
        log_prob.append(np.concatenate(row))
    return np.asarray(log_prob, np.float64)


def test_evaluations_agree(flow):
    # FlowModel.evaluate, bits_per_dim and log_prob.
    seed, batch_size = 5, 4
    model = tfr.FlowModel(flow, seed=seed)
    model.compile()
    by_model = model.evaluate(_IMAGES, batch_size=batch_size, verbose=0, return_dict=True)
    result = evaluation.bits_per_dim(flow, _IMAGES, seed=seed, batch_size=batch_size)
    by_hand = -_by_hand(flow, _IMAGES, 1, seed, batch_size) / (_DIMS * math.log(2))
    assert result.bits_per_dim == pytest.approx(by_model["bits_per_dim"], abs=1e-4)
    assert result.bits_per_dim == pytest.approx(by_hand.mean(), abs=1e-4)
    assert result.importance_weighted == pytest.approx(result.bits_per_dim, abs=1e-12)
    # The noise agrees, too: another seed gives another result.
    other = evaluation.bits_per_dim(flow, _IMAGES, seed=seed + 1, batch_size=batch_size)
    assert abs(other.bits_per_dim - result.bits_per_dim) > 1e-4


def test_draws_against_numpy(flow):
    result = evaluation.bits_per_dim(flow, _IMAGES, 3, seed=2, batch_size=4)
    log_prob = _by_hand(flow, _IMAGES, 3, 2, 4)
    scale = _DIMS * math.log(2)
    average = -log_prob.mean(axis=0) / scale
    tighter = -np.log(np.mean(np.exp(log_prob - log_prob.max(0)), 0)) - log_prob.max(0)
    tighter /= scale
    assert result.bits_per_dim == pytest.approx(average.mean(), abs=1e-5)
    assert result.standard_error == pytest.approx(average.std(ddof=1) / math.sqrt(11), rel=1e-3)
    assert result.importance_weighted == pytest.approx(tighter.mean(), abs=1e-5)
    assert result.importance_weighted_error == pytest.approx(
        tighter.std(ddof=1) / math.sqrt(11), rel=1e-3
    )
    assert result.importance_weighted < result.bits_per_dim - 3e-5
    assert (result.num_images, result.num_draws) == (11, 3)


def test_both_bounds_and_the_probability_of_integers():
    # p(u) = 2u on [0, 1): the integer 0 has probability 1, which is 0 bits.
    density = tfd.Sample(tfd.Beta(2.0, 1.0), [1, 1, 1])
    zeros = np.zeros([400, 1, 1, 1], np.uint8)
    few, many = (evaluation.bits_per_dim(density, zeros, k, batch_size=400) for k in (2, 50))
    # E log2(2u) = 1 - 1 / ln 2.
    assert many.bits_per_dim == pytest.approx(1 / math.log(2) - 1, abs=0.03)
    assert 0 < many.importance_weighted < few.importance_weighted < few.bits_per_dim
    assert many.importance_weighted < 0.02


def test_datasets():
    # Any density with image events.
    flow = tfd.Sample(tfd.Normal(128.0, 60.0), _SHAPE)
    expected = evaluation.bits_per_dim(flow, _IMAGES, 2, batch_size=4)
    labels = np.arange(len(_IMAGES))
    for elements in (_IMAGES, (_IMAGES, labels), {"image": _IMAGES, "label": labels}):
        dataset = tf.data.Dataset.from_tensor_slices(elements).batch(4)
        assert evaluation.bits_per_dim(flow, dataset, 2, batch_size=99) == expected
    assert evaluation.bits_per_dim(flow, tf.constant(_IMAGES), 2, batch_size=4) == expected
    assert evaluation.bits_per_dim(flow, _IMAGES + np.float32(0.5), 2, batch_size=4) == expected


def test_double():
    flow = ft.flow_distribution(_SHAPE, num_couplings=1, dtype=tf.float64)
    result = evaluation.bits_per_dim(flow, _IMAGES[:3])
    values = tfr.dequantize(_IMAGES[:3], (0x5EED, 1), tf.float64)
    by_hand = -np.mean(flow.log_prob(values)) / (_DIMS * math.log(2))
    assert result.bits_per_dim == pytest.approx(by_hand, rel=1e-12)


def _uniform(high=256.0):
    return tfd.Sample(tfd.Uniform(0.0, high), _SHAPE)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (_IMAGES[:0], "expected images, got none"),
        (_IMAGES[..., 0], r"expected images \[batch, 8, 8, 1\], got shape \(11, 8, 8\)"),
        (_IMAGES[:, :4], r"got shape \(11, 4, 8, 1\) in batch 1"),
        (_IMAGES / 255, "Multiply images in"),
        (np.where(_IMAGES > 9, np.nan, 1.0), "finite gray levels in batch 1"),
        (tf.data.Dataset.from_tensors(_IMAGES).repeat(), "finite dataset"),
        (tf.data.Dataset.from_tensors({"x": _IMAGES}), "key 'image'"),
    ],
    ids=["none", "rank", "shape", "fractions", "nan", "infinite", "key"],
)
def test_bad_images(images, message):
    with pytest.raises(ValueError, match=message):
        evaluation.bits_per_dim(_uniform(), images)


def test_infinite_log_densities():
    images = np.zeros([5, *_SHAPE], np.uint8)
    images[3, 2, 2] = 200
    with pytest.raises(ValueError, match=r"got \[-inf -inf\] for image 1 of batch 2"):
        evaluation.bits_per_dim(_uniform(100.0), images, 2, batch_size=2)


@pytest.mark.parametrize("argument", ["num_draws", "batch_size"])
def test_bad_arguments(argument):
    with pytest.raises(ValueError, match="at least 1"):
        evaluation.bits_per_dim(_uniform(), _IMAGES, **{argument: 0})


def test_one_image_has_no_standard_error():
    result = evaluation.bits_per_dim(_uniform(), _IMAGES[:1])
    assert math.isnan(result.standard_error)
    assert "| 1 | 8.000 | 8.000 (K = 1) |" in evaluation.as_markdown({"test": result})
    assert evaluation.as_json({"test": result})["results"]["test"]["standard_error"] is None


def test_each_configuration_has_a_result_of_the_paper():
    assert set(evaluation.PAPER_RESULTS) == set(tfr.PAPER_CONFIGURATIONS)


def test_tables():
    result = evaluation.Evaluation(4.0, 0.01, 3.9, 0.02, num_images=2_000, num_draws=8)
    by_split = {"validation": result, "train": result}
    lines = evaluation.as_markdown(by_split, "imagenet32").splitlines()
    assert lines[2] == "| this model | validation | 2,000 | 4.000 ± 0.010 | 3.900 ± 0.020 (K = 8) |"
    assert lines[4:] == [
        "| Real NVP (paper) | train | | 4.26 | |",
        "| Real NVP (paper) | test | | 4.28 | |",
        "| PixelRNN | test | | 3.86 | |",
        "| Conv DRAW | test | | < 4.40 | |",
    ]
    assert len({line.count("|") for line in lines}) == 1
    assert len(evaluation.as_markdown(by_split, "digits").splitlines()) == 4
    parsed = json.loads(json.dumps(evaluation.as_json(by_split, "imagenet32"), allow_nan=False))
    assert parsed["results"]["train"]["importance_weighted"] == 3.9
    assert parsed["paper"]["real_nvp"] == 4.28
    assert evaluation.as_json(by_split, "digits")["paper"] is None
