"""Hundreds of variables as a few arguments of a function."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import tensorflow as tf
from tensorflow.core.framework import function_pb2, types_pb2

__all__ = ["pack_handles"]

# One function packs all of them, and one kind of operation unpacks them.
_SIZE = 64
_CPU = "/device:CPU:0"


def pack_handles(
    definition: function_pb2.FunctionDef, captured: Sequence[tf.Tensor]
) -> list[tf.Tensor]:
    """Rewrites a function: handles of variables that it captures come by 64 in one argument.

    TensorFlow keeps several copies of each argument, 4 kB altogether, but next to nothing of each
    output of an operation.

    #### Example

    >>> import tensorflow as tf
    >>> x, y = tf.Variable(1.0), tf.Variable(2.0)
    >>> traced = tf.function(lambda: x + y).get_concrete_function()
    >>> definition = traced.function_def
    >>> [packed] = pack_handles(definition, traced.captured_inputs)
    >>> [argument.name for argument in definition.signature.input_arg], packed.shape
    (['packed_handles_0'], TensorShape([64]))

    Args:
      definition: of a function whose last arguments are `captured`; is changed. What is said of its
        arguments beside their names and types is lost.
      captured: tensors of any kind.

    Returns:
      What the function captures now: what cannot be packed, and tensors of 64 handles, of which the
      last one repeats some.
    """
    are_packed = [_can_be_packed(tensor) for tensor in captured]
    arguments = list(definition.signature.input_arg)[-len(captured) :] if captured else []
    _take_packed(definition, [each.name for each in itertools.compress(arguments, are_packed)])
    left = [tensor for tensor, packed in zip(captured, are_packed, strict=True) if not packed]
    return left + _packed(list(itertools.compress(captured, are_packed)))


def _can_be_packed(tensor: tf.Tensor) -> bool:
    # What is done to a variable has to be placed where the variable is, and what comes out of an
    # operation counts as where that runs: handles of other devices stay arguments of their own.
    is_here = tensor.device.endswith(_CPU)
    return is_here and tensor.dtype == tf.resource and tensor.shape.rank == 0


def _packed(handles: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    groups = [list(handles[i : i + _SIZE]) for i in range(0, len(handles), _SIZE)]

    # An operation on handles of other types and shapes is another kernel, which TensorFlow keeps:
    # those of a function it lets go with the function.
    @tf.function(input_signature=[tf.TensorSpec([], tf.resource)] * _SIZE, autograph=False)
    def pack(*handles: tf.Tensor) -> tf.Tensor:
        with tf.device(_CPU):
            return tf.raw_ops.Pack(values=handles)

    return [pack(*group, *group[:1] * (_SIZE - len(group))) for group in groups]


def _take_packed(definition: function_pb2.FunctionDef, names: Sequence[str]) -> None:
    signature, known = definition.signature, set(names)
    groups = [names[i : i + _SIZE] for i in range(0, len(names), _SIZE)]
    left = [argument for argument in signature.input_arg if argument.name not in known]
    del signature.input_arg[:]
    signature.input_arg.extend(left)
    definition.arg_attr.clear()
    definition.resource_arg_unique_id.clear()
    unpacked = {}
    for i, group in enumerate(groups):
        packed = signature.input_arg.add(name=f"packed_handles_{i}", type=types_pb2.DT_RESOURCE)
        node = definition.node_def.add(name=f"unpacked_handles_{i}", op="Unpack", device=_CPU)
        node.input.append(packed.name)
        node.attr["T"].type = types_pb2.DT_RESOURCE
        node.attr["num"].i = _SIZE
        unpacked |= {name: f"{node.name}:output:{position}" for position, name in enumerate(group)}
    for node in definition.node_def:
        node.input[:] = [unpacked.get(name, name) for name in node.input]
    for result, name in definition.ret.items():
        definition.ret[result] = unpacked.get(name, name)
