"""All private APIs of TensorFlow, TFP and Keras that this package uses, and why.

No other module imports from `tensorflow.python`, `tensorflow_probability.python` or `keras.src`.
Private methods that our classes override, and private attributes that they inherit, cannot move
here; `ATTRIBUTES` lists these methods and attributes.
`tests/internal/test_private_api.py` fails for other private names, and if a release moves a name.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

# Loading must find the classes of the caller's `custom_object_scope` within a scope of its own, but
# Keras' scopes hide each other.
from keras.src.backend.common.global_state import get_global_attribute

# The bijector cache must know in which `keras.StatelessScope` a result was computed.
from keras.src.backend.common.stateless_scope import get_stateless_scope

# For arrays, `keras.Model.fit` makes a `tf.data` pipeline with autotuning, and waits for the
# autotuning thread at the end. If `fit` gets a data adapter instead of arrays, it uses the adapter
# unchanged.
from keras.src.trainers.data_adapters.array_data_adapter import ArrayDataAdapter, can_convert_arrays

# `tf.config.optimizer` sets options for the whole process. The eager context can set them for the
# calls of one thread.
from tensorflow.python.eager.context import FunctionCallOptions
from tensorflow.python.eager.context import context as eager_context

# Recomputation must know whether a forward accumulator watches a tensor.
from tensorflow.python.eager.forwardprop_util import pack_tangents

# The bijector cache must know whether a gradient tape is active.
# `record_operation` gives a tape the gradient of a recomputed part; the public `tf.custom_gradient`
# keeps every graph that uses it alive for the life of the process.
from tensorflow.python.eager.record import could_possibly_record, record_operation, stop_recording

# Export to ONNX needs graphs with weights as constants, but the public converter to constants only
# takes graphs of TensorFlow 1.
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

# Returns 0, 1 or 2 if no tape, one tape, or several tapes record an operation on the tensors.
from tensorflow.python.ops.gradients_util import PossibleTapeGradientTypes as possible_gradients

# No public function tells whether TensorFlow uses oneDNN, which depends on the processor.
from tensorflow.python.util._pywrap_util_port import IsMklEnabled as is_onednn_enabled
from tensorflow_probability import bijectors as tfb
from tensorflow_probability import distributions as tfd

# `isinstance` needs these base classes: unless `b` is a composite tensor, `tfb.Invert(b)` returns a
# `_Invert`, which is not a `tfb.Invert`.
from tensorflow_probability.python.bijectors.chain import _Chain as Chain
from tensorflow_probability.python.bijectors.invert import _Invert as Invert
from tensorflow_probability.python.distributions.independent import _Independent as Independent
from tensorflow_probability.python.distributions.mixture import _Mixture as Mixture
from tensorflow_probability.python.distributions.sample import _Sample as Sample
from tensorflow_probability.python.distributions.transformed_distribution import (
    _TransformedDistribution as TransformedDistribution,
)

# TFP's bijector cache is not public. `tfb.FFJORD` uses it too.
from tensorflow_probability.python.internal.cache_util import (
    BijectorCacheWithGreedyAttrs,
    EphemeralDict,
)

# Methods that our classes override, except methods that TFP documents for subclasses;
# and attributes that our classes inherit and use.
_ONE_KEY = "gives equivalent calls one key in TFP's cache, and checks the input"
_ONE_PASS = "caches the value and log det of one pass, and frees tensors that no tape needs"
ATTRIBUTES = {
    tfb.Bijector: {
        "_cache": "the bijector's cache; ours replaces TFP's",
        "_call_forward": _ONE_KEY,
        "_call_inverse": _ONE_KEY,
        "_call_forward_log_det_jacobian": _ONE_KEY,
        "_call_inverse_log_det_jacobian": _ONE_KEY,
        "_trackable_children": "completes checkpoints: TensorFlow misses variables of Keras layers",
    },
    BijectorCacheWithGreedyAttrs: {
        "_attributes": _ONE_PASS,
        "_get_or_create_edge": _ONE_PASS,
        "_lookup": _ONE_PASS,
        "_forward_name": "the name of the method that the cache calls",
        "_inverse_name": "the name of the method that the cache calls",
    },
    tfd.Distribution: {
        "_call_sample_n": "TFP reshapes results of `_sample_n`, so the cache would not find them",
    },
    keras.Model: {
        "_maybe_symbolic_build": "passes the first batch; Keras' method fails with several workers",
        "_trackable_children": "warns that `tf.saved_model.save` saves no functions of the model",
    },
    keras.optimizers.Adam: {
        "_apply_weight_decay": "Keras' method adds several operations for each variable",
        "_backend_update_step": "Keras' method always sums replicas, and keeps the step's graph",
        "_clip_gradients": "Keras' method fails for gradients of several dtypes",
        "_get_variable_index": "returns the index of a variable in `_trainable_variables`",
        "_trainable_variables": "the variables that the optimizer was built for",
        "_untrack_variable": "removes a variable that an interrupted construction created",
        "_use_weight_decay": "returns whether weight decay applies to a variable",
        "_var_key": "returns a key of a variable, equal for its copies on replicas",
    },
    ArrayDataAdapter: {
        "_inputs": "the arrays, which ours replaces by row indices",
        "_num_samples": "the number of rows",
    },
    tf.Module: {"_no_dependency": "stores a value without a checkpoint wrapper, as TFP does"},
}

# `keras.Model.fit` passes this argument when it calls `evaluate` for validation; users do not.
WITHIN_FIT = "_use_cached_eval_dataset"


def custom_object_scope(custom_objects: Mapping[str, Any] | None) -> Any:
    """Returns a scope of Keras in which the custom objects of the enclosing scope remain known."""
    enclosing = get_global_attribute("custom_objects_scope_dict", {})
    return keras.saving.custom_object_scope({**enclosing, **(custom_objects or {})})


def set_trainable(variable: tf.Variable, trainable: bool) -> None:
    """Sets a variable's `trainable` flag, which is read-only in TensorFlow."""
    is_distributed = isinstance(variable, tf.distribute.DistributedValues)
    for copy in variable.values if is_distributed else [variable]:
        copy._trainable = trainable


def flatten_layers(layer: keras.layers.Layer) -> Sequence[keras.layers.Layer]:
    """Returns a layer and all nested layers. Only models have a public `layers` attribute."""
    return list(layer._flatten_layers())


def assign_on_replica(variable: tf.Variable, value: Any) -> None:
    """Assigns to this replica's copy of a variable; `assign` would aggregate over replicas."""
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)


def batch_counter(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """Returns the variable that counts batches."""
    # With `gradient_accumulation_steps`, `iterations` is a tensor that counts updates.
    return getattr(optimizer, "inner_optimizer", optimizer)._iterations


class _Buffer(io.BytesIO):
    def __str__(self) -> str:
        return "model.weights.h5"


def weights_in_memory(model: keras.Model) -> io.BytesIO:
    """Returns the file that `keras.Model.save_weights` writes, in memory.

    `save_weights` accepts a `BytesIO` whose `str` is a file name. If HDF5 wrote to disk, a failed
    write could crash the process.
    """
    buffer = _Buffer()
    keras.Model.save_weights(model, buffer)
    return buffer


def weights_group_of(store: Any) -> Any:
    """Returns the HDF5 group of the model or layer that Keras loads from a store.

    Keras passes the store to `load_own_variables`, and documents it as a dictionary. Returns `None`
    if there are several files.
    """
    file = None if hasattr(store, "sharding_config") else getattr(store, "h5_file", None)
    # Within another model, the path is not empty.
    return file and file.get(getattr(store, "_h5_entry_path", None) or "/")
