"""Hundreds of variables as a few arguments of a function."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf
from tensorflow.core.framework import function_pb2, types_pb2

__all__ = ["can_be_packed", "pack_handles", "take_packed_handles"]

# One function packs all of them, and one kind of operation unpacks them.
_SIZE = 64


def can_be_packed(tensor: tf.Tensor) -> bool:
    """Returns whether a tensor is the handle of a resource on the CPU.

    TensorFlow places what a function does to its arguments where each of them is, and of a tensor
    of many handles it looks at the first: those of other devices stay arguments of their own.
    """
    device = tf.DeviceSpec.from_string(tensor.device)
    return tensor.dtype == tf.resource and tensor.shape.rank == 0 and device.device_type == "CPU"


def pack_handles(handles: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """Returns tensors of 64 handles each; the last one repeats some.

    #### Example

    >>> import tensorflow as tf
    >>> [packed] = pack_handles([tf.Variable(1.0).handle, tf.Variable(2.0).handle])
    >>> packed.shape, packed.dtype
    (TensorShape([64]), tf.resource)

    Args:
      handles: of which each `can_be_packed`.
    """
    specs = [tf.TensorSpec([], tf.resource)] * _SIZE
    # An operation on handles of other types and shapes is another kernel, which TensorFlow keeps:
    # those of a function it lets go with the function.
    pack = tf.function(lambda *handles: tf.raw_ops.Pack(values=handles), autograph=False)
    pack = pack.get_concrete_function(*specs)
    groups = [list(handles[i : i + _SIZE]) for i in range(0, len(handles), _SIZE)]
    return [pack(*group, *group[:1] * (_SIZE - len(group))) for group in groups]


def take_packed_handles(definition: function_pb2.FunctionDef, indices: Sequence[int]) -> None:
    """Rewrites a function that takes handles: it takes what `pack_handles` makes of them.

    These come after the arguments that are left. TensorFlow keeps several copies of each argument,
    6 kB altogether, but of an output of an operation next to nothing.

    Args:
      definition: is changed.
      indices: the handles among its arguments, in their order. What is said of arguments beside
        their names and types is lost.
    """
    arguments = list(definition.signature.input_arg)
    num_packed = -(-len(indices) // _SIZE)
    unpacked = {}
    for k, i in enumerate(indices):
        group, position = divmod(k, _SIZE)
        unpacked[arguments[i].name] = f"{_name(group)}:output:{position}"
    left = [argument for argument in arguments if argument.name not in unpacked]
    del definition.signature.input_arg[:]
    definition.signature.input_arg.extend(left)
    definition.arg_attr.clear()
    definition.resource_arg_unique_id.clear()
    for node in definition.node_def:
        for i, name in enumerate(node.input):
            node.input[i] = unpacked.get(name, name)
    for result, name in definition.ret.items():
        definition.ret[result] = unpacked.get(name, name)
    for group in range(num_packed):
        packed = definition.signature.input_arg.add(type=types_pb2.DT_RESOURCE)
        packed.name = f"packed_handles_{group}"
        node = definition.node_def.add()
        node.name, node.op = _name(group), "Unpack"
        node.input.append(packed.name)
        node.attr["T"].type = types_pb2.DT_RESOURCE
        node.attr["num"].i = _SIZE


def _name(group: int) -> str:
    return f"unpacked_handles_{group}"
