"""TFP's bijector cache, for bijectors with weights."""

import threading
import weakref
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import private_api

_STORAGES = "_tfp_realnvp_one_pass_storages"
# Owns the storages of results that this thread computed eagerly.
_thread = threading.local()


class OnePassCache(private_api.BijectorCacheWithGreedyAttrs):
    """TFP's bijector cache, with a check on each hit whether the cached result is still valid.

    TFP looks up results by the identity of the input tensor and the keyword arguments. For a
    bijector with weights, a cache hit must also meet these conditions:

    *   The cached result comes from the same thread, and from the same graph or eager mode.
    *   No variable of the bijector has changed, inside a `keras.StatelessScope` or outside.
    *   Each active gradient tape that would record the computation has recorded the cached result.
    *   With `training=True`, each method uses a result once, because each pass updates statistics.
        Under a gradient tape too, because further tapes may have started since the last use. (The
        log det of a value that a persistent tape has recorded stays in use within further tapes.)

    The bijector's methods `forward_name` and `inverse_name` return the value and a dictionary with
    `'ildj'`, the log |det| of the inverse's Jacobian per event.
    """

    def __get__(self, bijector: Any, bijector_class: Any = None) -> "OnePassCache":
        names = self._forward_name, self._inverse_name
        return type(self)(*names, bijector, bijector_class, self._storage_here())

    def _storage_here(self) -> "_Storage":
        # Each graph owns the storage of its results. A global storage would keep graphs alive.
        owner = _thread if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
        if not hasattr(owner, _STORAGES):
            setattr(owner, _STORAGES, weakref.WeakKeyDictionary())
        storages = getattr(owner, _STORAGES).setdefault(self, {})
        # Other threads must not get a result that is incomplete, or recorded on this thread's tape.
        return storages.setdefault(threading.get_ident(), _Storage())

    def _lookup(self, input: Any, forward_name: str, inverse_name: str, **kwargs: Any) -> Any:
        edge = self._unserved_edge(input, forward_name, kwargs, hook=forward_name)
        if edge.output_ref:
            output = edge.output_ref()
        else:
            output = super()._lookup(input, forward_name, inverse_name, **kwargs)
            edge.attributes.update(state=_State(self.bijector), served=set())
        edge.attributes["served"].add(forward_name)
        return output

    def _attributes(self, input: Any, fn_name: str, **kwargs: Any) -> dict[str, tf.Tensor]:
        edge = self._unserved_edge(input, fn_name, kwargs, hook="log_det")
        if "ildj" not in edge.attributes:
            names = {self._forward_name, self._inverse_name}
            super()._lookup(input, fn_name, (names - {fn_name}).pop(), **kwargs)
            edge.attributes.update(state=_State(self.bijector), served=set())
        edge.attributes["served"].add("log_det")
        return edge.attributes

    def _unserved_edge(self, input: Any, fn_name: str, kwargs: Any, hook: str) -> Any:
        edge = self._get_or_create_edge(input, fn_name, kwargs)
        served = edge.attributes.get("served", set())
        is_used_once = kwargs.get("training") or private_api.could_possibly_record()
        # TensorFlow does not tell a persistent tape from several tapes, of which some may have
        # started since the other direction's pass.
        may_be_older = served - {hook, "log_det"} and private_api.possible_gradients([input]) > 1
        if is_used_once and (hook in served or (may_be_older and hook != "log_det")):
            self._drop(edge)
            edge = self._get_or_create_edge(input, fn_name, kwargs)
        return edge

    def _get_or_create_edge(self, input: Any, forward_name: str, kwargs: Any) -> Any:
        edge = super()._get_or_create_edge(input, forward_name, kwargs)
        if not edge.attributes:
            return edge
        # The log det needs the check even if the value was garbage-collected.
        results = [edge.attributes["ildj"], edge.output_ref() if edge.output_ref else None]
        results = [result for result in results if result is not None]
        inputs = [value for value in tf.nest.flatten([input, kwargs]) if tf.is_tensor(value)]
        # If a call was interrupted, its result may lack the state that validates it.
        state = edge.attributes.get("state")
        if state is not None and state.holds(inputs, results):
            return edge
        self._drop(edge)
        return super()._get_or_create_edge(input, forward_name, kwargs)

    def _drop(self, edge: Any) -> None:
        for reference in (edge.input_ref, edge.output_ref):
            # TFP removes the key of an output that was garbage-collected.
            if reference is not None:
                reference.cancel()
                self.storage.pop(reference, None)


def forget_results() -> None:
    """Forgets the results of the current graph, whose keys keep the bijectors alive."""
    graph = tf.compat.v1.get_default_graph()
    if hasattr(graph, _STORAGES):
        delattr(graph, _STORAGES)


class _Storage(private_api.EphemeralDict):
    """TFP's storage of cached results. Freeing a tensor whose key is missing raises no error."""

    def __delitem__(self, key: Any) -> None:
        self.pop(key, None)


class _State:
    """The state in which a result was computed: values of variables, or the length of a graph."""

    def __init__(self, bijector: Any) -> None:
        self._variables = tuple(bijector.variables)
        self._stateless_values = _stateless_values()
        if tf.executing_eagerly():
            # Reading copies nothing: the tensors share the variables' buffers, and an assignment to
            # a variable writes to a new buffer.
            self._values = _read(self._variables)
        else:
            self._num_operations = len(_operations())

    def holds(self, inputs: list[tf.Tensor], results: list[tf.Tensor]) -> bool:
        """Returns whether a new computation would give the same values and gradients."""
        if tf.executing_eagerly():
            pairs = zip(self._values, _read(self._variables), strict=True)
            is_written = not all(_same_value(old, new) for old, new in pairs)
        else:
            is_written = self._written_in_graph()
        if is_written:
            return False
        before, now = self._stateless_values, _stateless_values()
        if before.keys() != now.keys() or any(now[key] is not before[key] for key in now):
            return False
        if not private_api.could_possibly_record():
            return True
        # Tapes watch a variable when it is read, so read one as a new computation would.
        trainable = [v for v in self._variables if v.trainable and not now]
        sources = [*inputs, *now.values(), *map(tf.convert_to_tensor, trainable[:1])]
        possible = private_api.possible_gradients
        return possible(results) >= possible(sources)

    def _written_in_graph(self) -> bool:
        """Returns whether the graph has a newer operation on a variable, other than a read."""
        handles = {id(handle) for variable in self._variables for handle in _handles(variable)}
        captures = getattr(tf.compat.v1.get_default_graph(), "captures", ())
        captured = {inner.name for outer, inner in captures if id(outer) in handles}
        return any(
            id(tensor) in handles or tensor.name in captured
            for operation in _operations()[self._num_operations :]
            if operation.type != "ReadVariableOp"
            for tensor in operation.inputs
            if tensor.dtype == tf.resource
        )


def _stateless_values() -> dict[int, tf.Tensor]:
    """Returns the values of variables in the surrounding `keras.StatelessScope`, by id."""
    scope = private_api.get_stateless_scope()
    return {} if scope is None else dict(scope.state_mapping)


def _operations() -> list[tf.Operation]:
    return tf.compat.v1.get_default_graph().get_operations()


def _read(variables: tuple[tf.Variable, ...]) -> list[tf.Tensor]:
    # `tf.convert_to_tensor(variable)` would take twice as long.
    return [
        tf.raw_ops.ReadVariableOp(resource=handle, dtype=variable.dtype)
        for variable in variables
        for handle in _handles(variable)
    ]


def _handles(variable: tf.Variable) -> list[tf.Tensor]:
    try:
        return [variable.handle]
    except ValueError:
        # In a cross-replica context, a variable has a copy per replica.
        return [copy.handle for copy in variable.values]


def _same_value(old: tf.Tensor, new: tf.Tensor) -> bool:
    try:
        # On the CPU both arrays are views of buffers, and a variable keeps its buffer until it is
        # assigned.
        if np.asarray(memoryview(old)).ctypes.data == np.asarray(memoryview(new)).ctypes.data:
            return True
    except (BufferError, TypeError, ValueError):
        pass
    return bool(tf.reduce_all(tf.equal(old, new)))
