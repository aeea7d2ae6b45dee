"""Exports a distribution as ONNX models, which run without TensorFlow."""

import functools
import logging
import os
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow_probability import distributions as tfd

from tfp_realnvp.internal import atomic_files, optional_packages, private_api
from tfp_realnvp.internal.progress import Progress
from tfp_realnvp.saving.saved_model import ServedFlow, check_folder


def export_onnx(
    distribution: tfd.Distribution | keras.Model,
    path: str | os.PathLike[str],
    *,
    verbose: bool | None = None,
) -> None:
    r"""Writes three ONNX models: the log density, the encoder and the decoder.

    With the flow x = forward(z) and B images of shape [H, W, C], the folder `path` gets the files

    | name | inputs | output |
    | --- | --- | --- |
    | `log_prob.onnx` | `images` uint8 [B, H, W, C], `noise` [B, H, W, C] | `log_prob` [B], nats |
    | `encode.onnx` | `images`, `noise` | `latents`: inverse(images + noise) |
    | `decode.onnx` | `latents` | `images`: forward(latents), continuous pixel values |

    The caller draws `noise`, uniform in [0, 1), in the distribution's dtype. Round the `images` of
    `decode.onnx` down to get gray levels. If a `FlowModel` has a `VariationalDequantization` q, the
    ONNX models transform the noise to u ~ q(u | images), and the log density is
    log p(images + u) - log q(u | images). If you export a distribution, not a model, u is the
    uniform noise.

    The models take continuous `images` and no noise in three cases: the flow lacks a `PixelLogit`,
    has more than 256 gray levels, or belongs to a `FlowModel` with `dequantize=False`. For a flow
    over vectors [B, D], the input `x` replaces `images`, and no noise is used. If the flow declares
    a condition, `conditional_input` is the last input, as in `export_saved_model`. For K clusters,
    `encode.onnx` also returns the nearest `clusters` [B], the last input of `decode.onnx`, and
    `log_prob.onnx` runs the flow on B K events at once.

    The models accept any batch size but only one event shape. ONNX has no assertions, so pixel
    values out of range give NaN. The export copies the weights, and uses the moving statistics of
    normalizations. An interrupted export leaves the old folder unchanged.

    onnxruntime supports convolutions in float32, but not in float64.

    #### Example

    >>> import pathlib, tempfile, tensorflow_probability as tfp, tfp_realnvp as tfr
    >>> tfd = tfp.distributions
    >>> flow = tfd.TransformedDistribution(
    ...     tfd.Sample(tfd.Normal(0., 1.), [2]), tfr.RealNVPVector(2, num_couplings=2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tfr.export_onnx(flow, f'{folder}/moons', verbose=False)
    ...     sorted(path.name for path in pathlib.Path(folder).glob('moons/*'))
    ['decode.onnx', 'encode.onnx', 'log_prob.onnx']

    Without TensorFlow, `onnxruntime.InferenceSession('moons/log_prob.onnx')` runs the log density.

    Args:
      distribution: a `tfd.TransformedDistribution` over images or vectors, a `ClusterMixture`, or a
        `FlowModel` of one.
      path: the folder to write.
      verbose: as in `export_saved_model`.

    Raises:
      ImportError: if tf2onnx is not installed.
      TypeError: if `distribution` is not a `tfd.TransformedDistribution`.
      ValueError: if `distribution` has events other than images or vectors of known shape, or takes
        a condition that it does not declare; or if an operation has no counterpart in ONNX, such as
        convolutions in bfloat16; or if `path` is `*.onnx`.
      RuntimeError: if `export_onnx` is called in a `tf.function`.
    """
    check_folder(path, "export_onnx")
    progress = Progress("export_onnx", verbose)
    functions = _OnnxFlow(distribution, None, progress).functions()
    with atomic_files.atomic_replace(path) as folder:
        folder.mkdir()
        for number, name in enumerate(("log_prob", "encode", "decode"), 1):
            progress(f"converting {name}, function {number} of 3")
            # `decode.onnx` returns continuous values, not gray levels.
            of_levels = f"{name}_uint8" if name != "decode" else name
            function = functions.get(of_levels, functions[name])
            _write(folder / f"{name}.onnx", function.get_concrete_function())
    progress.end(os.fspath(path))


class _OnnxFlow(ServedFlow):
    """The functions of ONNX models, which take the noise itself instead of a seed."""

    # A model has one event shape, and tf2onnx does not support the loop over parts.
    allows_any_size = allows_loops = False

    def noise_source(self, noise: tf.TensorSpec) -> tf.TensorSpec:
        return noise

    def noise_from(self, source: tf.Tensor, images: tf.Tensor) -> tf.Tensor:
        return source


def _write(path: pathlib.Path, function: Any) -> None:
    """Writes the ONNX model of a concrete function with named outputs."""
    onnx = optional_packages.load("onnx", "export_onnx", "tf2onnx")
    tf2onnx = optional_packages.load("tf2onnx", "export_onnx", "tf2onnx")
    # `tf2onnx.convert.from_function` would turn captured tensors into inputs.
    frozen = private_api.convert_variables_to_constants_v2(
        function, lower_control_flow=False, aggressive_inlining=True
    )
    inputs, outputs = [[t.name for t in each] for each in (frozen.inputs, frozen.outputs)]
    names = {name: name.removesuffix(":0") for name in inputs}
    names |= zip(outputs, sorted(function.structured_outputs), strict=True)
    # Silence tf2onnx, which only logs errors. The check below raises them.
    disabled = logging.root.manager.disable
    logging.disable()
    handlers = {"BroadcastArgs": _broadcast_args, "Log1p": _log1p, "Ndtri": _ndtri}
    try:
        model, _ = tf2onnx.convert.from_graph_def(
            frozen.graph.as_graph_def(add_shapes=True),
            input_names=inputs,
            output_names=outputs[::-1],  # latents first, then clusters
            tensors_to_rename=names,
            custom_op_handlers={name: (handler, []) for name, handler in handlers.items()},
        )
    finally:
        logging.disable(disabled)
    # If tf2onnx cannot convert an operation, it leaves the operation in the model.
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        is_half = "float16" in str(error)
        advice = 'Construct the flow with network_dtype="float32". ' if is_half else ""
        message = f"export_onnx: tf2onnx cannot convert {path.stem}. {advice}{error}"
        raise ValueError(message) from error
    for value in (*model.graph.input, *model.graph.output):
        for batch_size in value.type.tensor_type.shape.dim[:1]:
            batch_size.dim_param = "batch"
    onnx.save_model(model, path)


# Handlers for operations that tf2onnx does not support. The handlers replace `node` in the graph.


def _broadcast_args(graph: Any, node: Any, name: str, args: Any) -> None:
    """Broadcasts two shapes by adding zeros of these shapes."""
    import onnx

    dtype, outputs = graph.get_dtype(node.output[0]), node.output
    zeros = []
    for shape in node.input:
        cast = graph.make_node("Cast", [shape], attr={"to": onnx.TensorProto.INT64})
        zeros.append(graph.make_node("ConstantOfShape", cast.output).output[0])
    shape = graph.make_node("Shape", graph.make_node("Add", zeros).output)
    graph.remove_node(name)
    graph.make_node("Cast", shape.output, attr={"to": dtype}, name=name, outputs=outputs)


def _log1p(graph: Any, node: Any, name: str, args: Any) -> None:
    import tf2onnx

    dtype = tf2onnx.utils.map_onnx_to_numpy_type(graph.get_dtype(node.input[0]))
    one = graph.make_const(f"{name}/one", np.ones([], dtype))
    graph.insert_new_node_on_input(node, "Add", [node.input[0], one.output[0]])
    node.type = "Log"


# Polynomials of Giles: Approximating the erfinv function, 2012, table 5, highest power first.
_ERFINV_CENTER = (
    *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
    *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
)
_ERFINV_TAILS = (
    *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
    *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
)


def _ndtri(graph: Any, node: Any, name: str, args: Any) -> None:
    """Computes the normal quantile √2 erfinv(2p - 1) to the precision of float32."""
    import tf2onnx

    if tf2onnx.utils.map_onnx_to_numpy_type(graph.get_dtype(node.output[0])) != np.float32:
        return

    def op(kind: str, *inputs: Any) -> str:
        def name_of(value: Any) -> str:
            unique = tf2onnx.utils.make_name(name)
            is_name = isinstance(value, str)
            return value if is_name else graph.make_const(unique, np.float32(value)).output[0]

        return graph.make_node(kind, [name_of(value) for value in inputs]).output[0]

    def polynomial(coefficients: Any, x: str) -> Any:
        return functools.reduce(lambda value, c: op("Add", op("Mul", value, x), c), coefficients)

    (p,), outputs = node.input, node.output
    variance = op("Mul", op("Mul", p, op("Sub", 1.0, p)), 4.0)
    w = op("Neg", op("Log", variance))
    center = polynomial(_ERFINV_CENTER, op("Sub", w, 2.5))
    tails = polynomial(_ERFINV_TAILS, op("Sub", op("Sqrt", w), 3.0))
    slope = op("Where", op("Less", w, 5.0), center, tails)
    x = op("Mul", op("Sub", p, 0.5), 2 * np.sqrt(2))
    graph.remove_node(name)
    graph.make_node("Mul", [x, slope], name=name, outputs=outputs)
