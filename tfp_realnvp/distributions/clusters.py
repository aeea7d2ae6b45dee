"""A mixture of flows p(x | cluster) over clusters that k-means finds without labels."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tensorflow_probability as tfp

from tfp_realnvp.bijectors.flow_bijector import surround_with, surrounding_pass
from tfp_realnvp.condition_spec import ConditionSpec
from tfp_realnvp.distributions import conditional_bases, routing
from tfp_realnvp.internal import batch_dims, layer_variables, optional_packages, validation

tfd = tfp.distributions

# The flow would memorize clusters of fewer events, and a sum over more clusters would be slow.
_MIN_EVENTS, _MAX_CLUSTERS = 25, 100
# More terms than these hardly change the mean log density of data (by 0.002 bits/dim for digits).
_NUM_VALIDATION_TERMS = 4
# The networks evaluate at most this number of positions (pixels) in one batch.
_MAX_POSITIONS = 2**18


@keras.saving.register_keras_serializable(package="tfp_realnvp")
class Clusters(keras.layers.Layer):
    r"""Clusters of a `ClusterMixture`: centers and frequencies, found by k-means.

    #### Example

    >>> import numpy as np, tfp_realnvp as tfr
    >>> images = np.random.default_rng(0).integers(0, 256, [60, 4, 4, 1], dtype=np.uint8)
    >>> clusters = tfr.Clusters.of(images, num_clusters=3)
    >>> tuple(clusters.centers.shape), clusters.nearest(images + 0.5).shape
    ((3, 4, 4, 1), TensorShape([60]))

    Attributes:
      num_clusters: total number of clusters K, equal to `num_classes` of the flow.
      num_classes: number of classes C, each with K / C clusters; `None` without labels.
      centers: variable [K, ...].
      frequencies: variable [K], each cluster's share of the events of its class.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        num_clusters: int,
        num_classes: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Allocates clusters whose centers are zero, for loading; `Clusters.of` fits clusters.

        Args:
          event_shape: shape of one image or vector.
          num_clusters, num_classes: K and C.
          **kwargs: `name`, as in `keras.layers.Layer`.

        Raises:
          ValueError: if `num_clusters` is not a positive multiple of `num_classes`.
        """
        super().__init__(**kwargs)
        self.event_shape = tuple(map(int, event_shape))
        self.num_clusters = validation.count(num_clusters, "num_clusters", 1, "Clusters")
        self.num_classes = num_classes
        expected = f"Clusters: expected num_clusters to be a multiple of num_classes={num_classes}"
        validation.require(num_clusters % (num_classes or 1) == 0, expected, num_clusters)
        options = {"trainable": False, "autocast": False, "dtype": "float32"}
        shape = (num_clusters, *self.event_shape)
        self.centers = self.add_weight(shape, "zeros", name="centers", **options)
        share = keras.initializers.Constant(1 / self.num_per_class)
        self.frequencies = self.add_weight((num_clusters,), share, name="frequencies", **options)
        self.built = True

    @classmethod
    def of(
        cls, events: Any, labels: Any = None, *, num_clusters: int | None = None, seed: int = 0
    ) -> "Clusters":
        """Finds clusters of events with scikit-learn's k-means.

        Args:
          events: images or vectors [N, ...]. Integers are gray levels, to which `of` adds 0.5.
          labels: class labels [N], starting at 0; clusters are then found per class.
          num_clusters: number of clusters, per class if there are labels. Defaults to one cluster
            per 25 events (of the rarest class), and at most 100 clusters in total.
          seed: seed of k-means.

        Raises:
          ValueError: if events or labels are invalid, or there are fewer distinct events than
            clusters.
          ImportError: if scikit-learn is not installed.
        """
        values = np.asarray(events)
        is_valid = values.size and values.ndim > 1 and values.dtype.kind in "biuf"
        is_valid = is_valid and np.isfinite(values).all()
        expected = "Clusters.of: expected finite images or vectors [N, ...]"
        validation.require(bool(is_valid), expected, (values.shape, values.dtype.name))
        rows = values.reshape(len(values), -1) + np.float32(0.5 * (values.dtype.kind in "biu"))
        groups, num_classes = [rows], None
        if labels is not None:
            labels = np.asarray(labels).reshape(-1)
            is_valid = labels.dtype.kind in "iu" and len(labels) == len(rows) and labels.min() >= 0
            expected = f"Clusters.of: expected {len(rows)} non-negative integer labels"
            validation.require(bool(is_valid), expected, labels)
            num_classes = int(labels.max()) + 1
            groups = [rows[labels == label] for label in range(num_classes)]
        least = min(map(len, groups))
        if num_clusters is None:
            num_clusters = max(1, min(least // _MIN_EVENTS, _MAX_CLUSTERS // len(groups)))
        num_clusters = validation.count(num_clusters, "num_clusters", 1, "Clusters.of")
        expected = f"Clusters.of: expected at least num_clusters={num_clusters} events (per class)"
        validation.require(least >= num_clusters, expected, least)
        cluster = optional_packages.load("sklearn.cluster", "Clusters.of", "scikit-learn")
        options = {"n_clusters": num_clusters, "n_init": 3, "random_state": seed}
        found = [cluster.KMeans(**options).fit(group) for group in groups]
        clusters = cls(values.shape[1:], num_clusters * len(groups), num_classes)
        centers = np.concatenate([each.cluster_centers_ for each in found])
        clusters.centers.assign(centers.reshape(clusters.centers.shape))
        counts = [np.bincount(each.labels_, minlength=num_clusters) for each in found]
        for count, group in zip(counts, groups, strict=True):
            if not count.all():
                distinct = len(np.unique(group, axis=0))
                expected = f"Clusters.of: expected at least num_clusters={num_clusters} distinct "
                raise ValueError(f"{expected}events (per class), got {distinct}.")
        clusters.frequencies.assign(np.concatenate([count / count.sum() for count in counts]))
        return clusters

    @property
    def num_per_class(self) -> int:
        """Number of clusters in each class; without classes, the total number."""
        return self.num_clusters // (self.num_classes or 1)

    def nearest(self, events: Any, labels: Any = None, number: int | None = None) -> tf.Tensor:
        """Returns, for each event, the cluster with the nearest center, [B].

        Args:
          events: continuous values [B, ...].
          labels: classes [B]; restricts each event to clusters of its class.
          number: a number n, to return the n nearest clusters instead, [B, n], nearest first.
        """
        # In float32, squares of values far from zero would lose the distances.
        rows = tf.cast(tf.reshape(events, [-1, int(np.prod(self.event_shape))]), tf.float64)
        first = 0 if labels is None else tf.cast(labels, tf.int32) * self.num_per_class
        first = tf.broadcast_to(first, tf.shape(rows)[:1])[:, tf.newaxis]
        centers = tf.cast(tf.reshape(self.centers.value, [self.num_clusters, -1]), tf.float64)
        # Pad one row: with oneDNN, a matrix product without rows crashes the process.
        products = tf.matmul(tf.pad(rows, [[0, 1], [0, 0]]), centers, transpose_b=True)[:-1]
        # Omit the term |x|² of squared distances, which is equal for all clusters.
        distances = tf.reduce_sum(centers**2, axis=-1) - 2 * products
        if labels is not None:
            distances = tf.gather(distances, first + tf.range(self.num_per_class), batch_dims=1)
        found = first + tf.math.top_k(-distances, number or 1).indices
        return found[:, 0] if number is None else found

    def log_frequencies(self, clusters: tf.Tensor) -> tf.Tensor:
        """Returns the log frequency of clusters [...]; 0 for a missing cluster, -1."""
        log_frequencies = tf.math.log(tf.convert_to_tensor(self.frequencies.value))
        known = tf.gather(log_frequencies, tf.maximum(clusters, 0))
        return tf.where(clusters < 0, tf.zeros_like(known), known)

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config`."""
        names = ("event_shape", "num_clusters", "num_classes")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


class ClusterMixture(conditional_bases.ConditionalDistribution, tfd.Distribution):
    r"""A mixture of flows p(x | k) over unobserved clusters k.

    ```
    p(x)     = sum_k w_k p(x | k)                  with the frequencies w of the clusters
    p(x | y) = sum_k w_k p(x | k), k of class y    if the clusters have classes
    ```

    The flow maps the normal distribution to each cluster separately, so few samples lie between
    clusters.

    `sample` draws clusters in proportion to their frequencies. `log_prob` is exact, and evaluates
    the flow K times, in batches. `mixture.copy(num_terms=n)` shares the flow, but sums only over
    the n clusters nearest to each event, which gives a lower bound. `FlowModel.fit` validates with
    four clusters.

    `FlowModel.fit(images)`, or `fit(images, labels)` for clusters with classes, maximizes the lower
    bound `log w_k + log p(x | k)`, where k is the nearest cluster. `log_prob` returns this bound
    within `tfr.call_options(training=True)`, so a `tfd.Mixture` of mixtures trains in the same way.
    If the flow has `condition_dropout=p`, training omits the cluster for a fraction p of the
    images, so that `FlowModel.sample` can use `guidance`.

    #### Example

    >>> import numpy as np, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> images = np.random.default_rng(0).integers(0, 256, [60, 4, 4, 1], dtype=np.uint8)
    >>> clusters = tfr.Clusters.of(images, num_clusters=3)
    >>> bijector = tfr.RealNVPImage(
    ...     (4, 4, 1), num_scales=1, num_blocks=0, num_filters=4, num_classes=3,
    ...     condition_dropout=0.03)
    >>> flow = tfd.TransformedDistribution(tfd.Sample(tfd.Normal(0., 1.), [4, 4, 1]), bijector)
    >>> model = tfr.FlowModel(tfr.ClusterMixture(flow, clusters))
    >>> model.compile()
    >>> history = model.fit(images, epochs=1, verbose=0)
    >>> model.sample(16, guidance=0.15).shape, tfr.log_prob(model, images).shape
    (TensorShape([16, 4, 4, 1]), (60,))
    """

    def __init__(
        self,
        components_distribution: tfd.Distribution,
        clusters: Clusters,
        *,
        num_terms: int | None = None,
        validate_args: bool = False,
        name: str = "ClusterMixture",
    ) -> None:
        """Constructs the distribution.

        Args:
          components_distribution: p(x | k), a `tfd.TransformedDistribution` whose bijector has
            `num_classes=clusters.num_clusters`.
          clusters: clusters of the training data, `Clusters.of(images)`.
          num_terms: number of nearest clusters that `log_prob` sums over, for a lower bound.
            Defaults to all clusters.
          validate_args, name: as in `tfd.Distribution`.

        Raises:
          TypeError: if `clusters` is not a `Clusters`.
          ValueError: if the distribution's condition or event shape does not fit the clusters, or
            `num_terms` is out of range.
        """
        parameters = dict(locals())
        is_clusters, expected = isinstance(clusters, Clusters), f"{name}: expected Clusters"
        validation.require(is_clusters, expected, clusters, TypeError)
        self.components_distribution, self.clusters = components_distribution, clusters
        spec = routing.find_condition_spec(components_distribution)
        number, classes = clusters.num_clusters, clusters.num_classes
        expected = f"{name}: expected a distribution with num_classes=num_clusters={number}"
        validation.require(spec is not None and spec.num_classes == number, expected, spec)
        event_shape, expected = components_distribution.event_shape, f"{name}: expected events"
        fits = event_shape.is_compatible_with(clusters.event_shape)
        validation.require(fits, f"{expected} of shape {clusters.event_shape}", event_shape)
        if num_terms is not None:
            num_terms = validation.count(num_terms, "num_terms", 1, name)
            expected = f"{name}: expected num_terms of at most {clusters.num_per_class}"
            validation.require(num_terms <= clusters.num_per_class, expected, num_terms)
        self.num_terms = num_terms
        self.accepts_conditional_input = classes is not None
        self.condition_spec = None if classes is None else ConditionSpec(num_classes=classes)
        self._layer_variables = layer_variables.LayerVariables((clusters,))
        dtype, kind, nan_stats = components_distribution.dtype, tfd.NOT_REPARAMETERIZED, True
        with tf.name_scope(name) as name:
            super().__init__(dtype, kind, validate_args, nan_stats, parameters, name=name)

    @classmethod
    def _parameter_properties(cls, dtype: Any, num_classes: int | None = None) -> dict[str, Any]:
        return {}

    def _event_shape(self) -> tf.TensorShape:
        return tf.TensorShape(self.clusters.event_shape)

    def draw_clusters(
        self, shape: Any, seed: Any, labels: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Samples clusters, [*shape], according to frequency; also returns a seed for the latents.

        If the clusters have classes, the shape of `labels` must broadcast to `shape`.
        """
        seed, of_clusters = tfp.random.split_seed(seed, salt="clusters")
        per_class = self.clusters.num_per_class
        number = self.clusters.num_clusters // per_class
        log_frequencies = self.clusters.log_frequencies(tf.range(self.clusters.num_clusters))
        labels = tf.zeros([], tf.int32) if labels is None else labels
        labels = tf.broadcast_to(labels, shape)
        logits = tf.gather(tf.reshape(log_frequencies, [number, per_class]), labels)
        drawn = tfd.Categorical(logits=logits).sample(seed=of_clusters)
        return seed, labels * per_class + drawn

    def _call_sample_n(
        self, sample_shape: Any, seed: Any, conditional_input: Any = None, **kwargs: Any
    ) -> tf.Tensor:
        validation.known_options(kwargs, ["conditional_input"], self.name)
        shape = tf.reshape(tf.convert_to_tensor(sample_shape, tf.int32), [-1])
        seed, clusters = self.draw_clusters(shape, seed, self._labels(conditional_input))
        with surround_with(condition=clusters):
            return self.components_distribution.sample(shape, seed=seed)

    def _labels(self, conditional_input: Any) -> tf.Tensor | None:
        spec, when = self.condition_spec, "if the clusters have classes"
        validation.only(conditional_input, "conditional_input", spec is not None, when, self.name)
        if spec is None:
            return None
        return spec.as_tensor(conditional_bases.given_or_surrounding(conditional_input), self.name)

    def _log_prob(self, value: tf.Tensor, conditional_input: Any = None) -> tf.Tensor:
        def log_prob(events: tf.Tensor, clusters: tf.Tensor) -> tf.Tensor:
            with surround_with(condition=clusters):
                return self.components_distribution.log_prob(events)

        labels, ndims = self._labels(conditional_input), self.event_shape.rank
        if labels is not None:
            value, labels = batch_dims.broadcast_batch(value, ndims, labels, 0)
            labels = batch_dims.flatten_batch(labels, 0)
        events = batch_dims.flatten_batch(value, ndims)
        if is_filled := batch_dims.may_be_empty(events, ndims):
            labels = batch_dims.without_empty_axes(labels)
        filled = batch_dims.without_empty_axes(events) if is_filled else events
        if surrounding_pass().training:
            # Within another distribution, which `training_log_prob` does not reach.
            log_probs = self.training_log_prob(filled, labels, lambda _, clusters: clusters)
        else:
            log_probs = self.sum_over_clusters(log_prob, filled, labels)
        log_probs = batch_dims.cut_to_batch(log_probs, events, ndims, 0) if is_filled else log_probs
        return batch_dims.unflatten_batch(log_probs, value, ndims)

    def training_log_prob(
        self, value: tf.Tensor, labels: tf.Tensor | None, drop: Callable[..., tf.Tensor]
    ) -> tf.Tensor:
        """Returns what training maximizes: `log w_k + log p(x | k)` for the nearest cluster k, [B].

        `drop(spec, clusters)` leaves out some of the clusters, as `condition_dropout` asks; for
        events without a cluster, the result is the flow's log p(x).
        """
        flow = self.components_distribution
        clusters = drop(routing.find_condition_spec(flow), self.clusters.nearest(value, labels))
        with surround_with(condition=clusters):
            log_prob = flow.log_prob(routing.unseen(flow, value))
        return log_prob + tf.cast(self.clusters.log_frequencies(clusters), log_prob.dtype)

    def approximation(self) -> "ClusterMixture":
        """Returns a copy that sums over the four nearest clusters only, for validation in `fit`."""
        limit = min(_NUM_VALIDATION_TERMS, self.clusters.num_per_class)
        number = self.num_terms or self.clusters.num_per_class
        return self if number <= limit else self.copy(num_terms=limit)

    def sum_over_clusters(
        self,
        log_prob: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        events: tf.Tensor,
        labels: tf.Tensor | None = None,
        in_parts: bool = True,
    ) -> tf.Tensor:
        """Returns log p(x), or log p(x | y) with labels, of events [B, ...], with B at least 1.

        `log_prob(events, clusters)` returns log p(x | k). With `in_parts`, its batches are small.
        """
        layer = self.clusters
        number = self.num_terms or (layer.num_clusters if labels is None else layer.num_per_class)
        clusters = layer.nearest(events, labels, number)
        of_pairs = tf.reshape(clusters, [-1])
        if in_parts:
            log_probs = self._log_probs_in_parts(log_prob, events, of_pairs, number)
        else:
            log_probs = log_prob(tf.repeat(events, number, axis=0), of_pairs)
        log_probs = tf.reshape(log_probs, [-1, number])
        log_frequencies = tf.cast(layer.log_frequencies(clusters), self.dtype)
        return tf.reduce_logsumexp(log_probs + log_frequencies, axis=-1)

    def _log_probs_in_parts(
        self, log_prob: Any, events: tf.Tensor, clusters: tf.Tensor, number: int
    ) -> tf.Tensor:
        """Returns log p(x | k) of each event and `number` clusters, [B * number]."""
        num_pairs = tf.size(clusters)
        size = tf.minimum(num_pairs, max(1, _MAX_POSITIONS // int(np.prod(self.event_shape[:-1]))))
        num_parts = -(-num_pairs // size)
        # Each part is one batch of (event, cluster) pairs. Pad the last part with the first pairs.
        parts = tf.reshape(tf.range(num_parts * size) % num_pairs, [num_parts, size])
        log_probs = tf.map_fn(
            lambda pairs: log_prob(tf.gather(events, pairs // number), tf.gather(clusters, pairs)),
            parts,
            fn_output_signature=tf.TensorSpec([None], self.dtype),
            parallel_iterations=1,
        )
        return tf.reshape(log_probs, [-1])[:num_pairs]


def flow_of(distribution: tfd.Distribution) -> tfd.Distribution:
    """Returns the flow of a `ClusterMixture`, and other distributions unchanged."""
    is_mixture = isinstance(distribution, ClusterMixture)
    return distribution.components_distribution if is_mixture else distribution


def condition_of_events(distribution: tfd.Distribution, events: Any, condition: Any) -> Any:
    """Returns the condition under which `flow_of(distribution)` stands for each event, [B].

    For a `ClusterMixture`, these are the nearest clusters, of the classes that `condition` gives;
    for other distributions, `condition` itself.
    """
    is_mixture = isinstance(distribution, ClusterMixture)
    return distribution.clusters.nearest(events, condition) if is_mixture else condition


def condition_of_samples(
    distribution: tfd.Distribution, shape: Any, seed: Any, condition: Any
) -> tuple[Any, Any]:
    """Returns the condition of `flow_of(distribution)` for samples, preceded by their seed.

    For a `ClusterMixture`, draws clusters; for other distributions, returns `condition` itself.
    """
    is_mixture = isinstance(distribution, ClusterMixture)
    return distribution.draw_clusters(shape, seed, condition) if is_mixture else (seed, condition)
