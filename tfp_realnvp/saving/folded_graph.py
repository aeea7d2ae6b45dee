"""Precomputes the parts of a graph that depend only on weights."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfp_realnvp.internal import private_api

# Precomputed tensors of more elements become variables, which a SavedModel stores once for all
# functions. Smaller tensors become constants, because reading a variable takes 3 µs per call.
_MAX_CONSTANT_SIZE = 2**14


def folded(
    function: Any, variables: dict[tuple[str, tuple[int, ...], bytes], tf.Variable]
) -> Callable[..., Any]:
    """Returns an equivalent function that runs only operations that depend on its inputs.

    Computes all other values now: weight normalization, folded batch normalizations, inverse
    matrices, log dets of 1×1 convolutions. Later changes of variables do not affect the result.
    Gradients ignore `tf.custom_gradient`. Adds each large value once to `variables`, keyed by
    dtype, shape and bytes.
    """
    frozen = private_api.convert_variables_to_constants_v2(
        function, lower_control_flow=False, aggressive_inlining=True
    )
    varying = {tensor.op.name for tensor in frozen.inputs}
    used: dict[str, tf.Tensor] = {}
    for operation in frozen.graph.get_operations():
        before = [tensor.op for tensor in operation.inputs] + operation.control_inputs
        if operation.op_def.is_stateful or any(op.name in varying for op in before):
            varying.add(operation.name)
            used |= {tensor.name: tensor for tensor in operation.inputs}
    consumed = set(used)
    used |= {tensor.name: tensor for tensor in frozen.outputs}
    computed = [
        name
        for name, tensor in used.items()
        if tensor.op.name not in varying
        and (tensor.op.type != "Const" or tensor.shape.num_elements() > _MAX_CONSTANT_SIZE)
    ]
    kept: dict[str, np.ndarray | tf.Variable] = {}
    for name, tensor in zip(computed, frozen.prune([], [used[n] for n in computed])(), strict=True):
        kept[name] = value = tensor.numpy()
        if value.size > _MAX_CONSTANT_SIZE:
            key = (value.dtype.name, value.shape, value.tobytes())
            if key not in variables:
                variables[key] = tf.Variable(tensor, trainable=False)
            kept[name] = variables[key]
    # Keep the remaining operations, without control dependencies on precomputed operations.
    needed = varying | {tensor.op.name for name, tensor in used.items() if name not in kept}
    whole = frozen.graph.as_graph_def()
    rest = tf.compat.v1.GraphDef(versions=whole.versions, library=whole.library)
    for node in whole.node:
        if node.name in needed and node.op != "Placeholder":
            names = [name for name in node.input if name[0] != "^" or name[1:] in varying]
            node.ClearField("input")
            node.input.extend(names)
            # Drop custom gradients, such as `tf.nn.silu`'s, which refer to tensors of another
            # graph.
            node.attr.pop("_gradient_op_type", None)
            rest.node.append(node)

    def call(*values: tf.Tensor) -> Any:
        known = {tensor.name: value for tensor, value in zip(frozen.inputs, values, strict=True)}
        known |= {name: tf.convert_to_tensor(value) for name, value in kept.items()}
        outputs = [tensor.name for tensor in frozen.outputs if tensor.name not in known]
        fed = {name: tensor for name, tensor in known.items() if name in consumed}
        results = tf.graph_util.import_graph_def(rest, fed, outputs, name="")
        known |= zip(outputs, results, strict=True)
        results = [known[tensor.name] for tensor in frozen.outputs]
        return tf.nest.pack_sequence_as(function.structured_outputs, results)

    return call
