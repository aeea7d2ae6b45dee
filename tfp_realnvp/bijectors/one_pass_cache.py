"""The cache that binds one network pass to the four hooks of a TFP bijector."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.eager import record
from tensorflow.python.framework import auto_control_deps_utils
from tensorflow_probability.python.internal import cache_util

__all__ = ["OnePassCache"]

_STORAGES = "_tfp_realnvp_one_pass_storages"


class OnePassCache(cache_util.BijectorCacheWithGreedyAttrs):
    """TFP's bijector cache, asked each time whether what it holds would still come out the same.

    TFP finds a cached result by the identity of the input tensor and the keyword arguments. For a
    bijector with weights that is not enough; here a result is only given out

    *   in the graph (or eagerly) and in the thread in which it was computed: an eager result must
        not become a constant of a traced function;
    *   as long as no variable of the bijector was written since: `log_prob(x)` before and after a
        training step differ, also for the very same tensor `x`;
    *   if an active gradient tape that would have recorded the computation did record it;
    *   once for each hook when `training` is true: moving statistics follow each training pass.

    The bijector's functions named by `forward_name` and `inverse_name` return the value and a
    dictionary with the entry `'ildj'`, the log |det| of the inverse's Jacobian for each event.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._thread = threading.local()

    def __get__(self, bijector: Any, bijector_class: Any = None) -> OnePassCache:
        return type(self)(
            forward_name=self._forward_name,
            inverse_name=self._inverse_name,
            bijector=bijector,
            bijector_class=bijector_class,
            storage=self._storage_here(),
        )

    def _storage_here(self) -> _Storage:
        # One storage a thread: a result recorded on the tape of one thread, or half computed by
        # it, is of no use to another.
        if tf.executing_eagerly():
            if not hasattr(self._thread, "storage"):
                self._thread.storage = _Storage()
            return self._thread.storage
        # And one a graph, which it dies with: results hold the graph, that holds what they are
        # results of.
        graph = tf.compat.v1.get_default_graph()
        if not hasattr(graph, _STORAGES):
            setattr(graph, _STORAGES, weakref.WeakKeyDictionary())
        of_threads = getattr(graph, _STORAGES).setdefault(self, {})
        thread = threading.get_ident()
        if thread not in of_threads:
            of_threads[thread] = _Storage()
        return of_threads[thread]

    def _lookup(self, input: Any, forward_name: str, inverse_name: str, **kwargs: Any) -> Any:
        edge = self._unserved_edge(input, forward_name, kwargs, hook=forward_name)
        if edge.output_ref:
            output = edge.output_ref()
        else:
            output = super()._lookup(input, forward_name, inverse_name, **kwargs)
        edge.attributes["served"].add(forward_name)
        return output

    def _attributes(self, input: Any, fn_name: str, **kwargs: Any) -> dict[str, tf.Tensor]:
        edge = self._unserved_edge(input, fn_name, kwargs, hook="log_det")
        if "ildj" not in edge.attributes:
            names = {self._forward_name, self._inverse_name}
            super()._lookup(input, fn_name, (names - {fn_name}).pop(), **kwargs)
        edge.attributes["served"].add("log_det")
        return edge.attributes

    def _unserved_edge(self, input: Any, fn_name: str, kwargs: Any, hook: str) -> Any:
        edge = self._get_or_create_edge(input, fn_name, kwargs)
        if kwargs.get("training") and hook in edge.attributes.get("served", ()):
            self._drop(edge)
            edge = self._get_or_create_edge(input, fn_name, kwargs)
        return edge

    def _get_or_create_edge(self, input: Any, forward_name: str, kwargs: Any) -> Any:
        edge = super()._get_or_create_edge(input, forward_name, kwargs)
        attributes = edge.attributes
        if "state" not in attributes:
            return edge
        # The value may be gone, when only its log det was asked for: this one can still be stale.
        results = [attributes["ildj"], edge.output_ref() if edge.output_ref else None]
        if attributes["state"].holds(input, [each for each in results if each is not None]):
            return edge
        self._drop(edge)
        return super()._get_or_create_edge(input, forward_name, kwargs)

    def _invoke(self, input: Any, fn_name: str, kwargs: Any, attributes: Any) -> Any:
        output = super()._invoke(input, fn_name, kwargs, attributes)
        attributes["served"] = set()
        attributes["state"] = _ComputationState(self.bijector)
        return output

    def _drop(self, edge: Any) -> None:
        for reference in (edge.input_ref, edge.output_ref):
            # An edge whose value is gone is found under its input only.
            if reference is not None:
                reference.cancel()
                self.storage.pop(reference, None)


class _Storage(cache_util.EphemeralDict):
    """TFP's storage; a tensor may die in another thread, or after its entry was dropped."""

    def __init__(self) -> None:
        super().__init__()
        weak_self = weakref.ref(self)

        def maybe_delete(key: Any) -> None:
            storage = weak_self()
            if storage is not None:
                storage.pop(key, None)

        self.maybe_del = maybe_delete


class _ComputationState:
    """The variables' values that a result was computed with, or when in its graph it was."""

    def __init__(self, bijector: Any) -> None:
        self._variables = bijector.state_variables
        if tf.executing_eagerly():
            # No copies: these hold the buffers, and the next assignment then writes to a new one.
            self._values = [_read(variable) for variable in self._variables]
        else:
            self._num_operations = len(_operations())

    def holds(self, value: tf.Tensor, results: list[tf.Tensor]) -> bool:
        """Returns whether computing again, here and now, would give the same tensors."""
        if self._written_eagerly() if tf.executing_eagerly() else self._written_in_graph():
            return False
        if not record.could_possibly_record() or record.should_record_backprop(results):
            return True
        # A tape is active and does not know the result: would it, were it computed again?
        trainable = any(variable.trainable for variable in self._variables)
        return not (trainable or record.should_record_backprop([value]))

    def _written_eagerly(self) -> bool:
        return not all(
            _same_value(old, _read(variable))
            for old, variable in zip(self._values, self._variables, strict=True)
        )

    def _written_in_graph(self) -> bool:
        later = _operations()[self._num_operations :]
        handles = {id(_handle(variable)) for variable in self._variables}
        names = {
            inner.name
            for outer, inner in getattr(tf.compat.v1.get_default_graph(), "captures", ())
            if id(outer) in handles
        }
        for operation in later:
            if any(tensor.dtype == tf.resource for tensor in operation.inputs):
                _, writes = auto_control_deps_utils.get_read_write_resource_inputs(operation)
                if any(id(tensor) in handles or tensor.name in names for tensor in writes):
                    return True
        return False


def _operations() -> list[tf.Operation]:
    return tf.compat.v1.get_default_graph().get_operations()


def _read(variable: tf.Variable) -> tf.Tensor:
    # The bare operation: `read_value` costs three times as much, for each variable of each call.
    return tf.raw_ops.ReadVariableOp(resource=_handle(variable), dtype=variable.dtype)


def _handle(variable: tf.Variable) -> tf.Tensor:
    try:
        return variable.handle
    except ValueError:
        # Between the replicas of a strategy it has a copy for each, and all are the same.
        return variable.values[0].handle


def _same_value(old: tf.Tensor, new: tf.Tensor) -> bool:
    try:
        # On the CPU both are views, and a variable that was not written has kept its buffer.
        if np.asarray(memoryview(old)).ctypes.data == np.asarray(memoryview(new)).ctypes.data:
            return True
    except (BufferError, TypeError, ValueError):
        pass
    return bool(tf.reduce_all(tf.equal(old, new)))
