r"""Evaluates and samples an exported model, with only TensorFlow and NumPy.

    python -c "import tfp_realnvp as t; t.FlowModel.from_preset('results/digits').export('flow/1')"
    python examples/serve.py flow/1 --images=images.npy --output=samples.npy

TensorFlow Serving reads the same folder. The folder's name is the version of the model:

    docker run -p 8501:8501 -v "$PWD/flow:/models/flow" -e MODEL_NAME=flow tensorflow/serving

The REST API takes the inputs of a signature by name. This request has two images of 2×2 pixels with
one channel, and the seed of the dequantization noise:

    curl http://localhost:8501/v1/models/flow:predict -d '{
      "signature_name": "bits_per_dim_uint8",
      "inputs": {
        "images": [[[[0], [17]], [[255], [3]]], [[[8], [8]], [[9], [9]]]],
        "seed": 0
      }
    }'

The reply has no name for a single output: `{"outputs": [7.98, 5.12]}`. The next request returns 16
samples as gray levels. Equal seeds give equal samples:

    curl http://localhost:8501/v1/models/flow:predict -d '{
      "signature_name": "sample_uint8",
      "inputs": {"num_samples": 16, "seed": 1, "temperature": 0.7}
    }'

A conditional model has one more input, here the label 3 for all samples. For a model with classes,
the script also classifies images. If you pass labels, it prints the accuracy:

    python examples/serve.py digits/1 --condition=3
    python examples/serve.py digits/1 --images=images.npy --image_conditions=labels.npy

    curl http://localhost:8501/v1/models/digits:predict -d '{
      "signature_name": "sample_uint8",
      "inputs": {"num_samples": 16, "seed": 1, "temperature": 1, "conditional_input": [3]}
    }'

A model with clusters, or one that was trained with `condition_dropout`, also needs the input
`"guidance"`; 0 turns guidance off.
"""

import argparse

import numpy as np
import tensorflow as tf


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluates and samples an exported model.")
    parser.add_argument("model", help="folder of the SavedModel")
    parser.add_argument("--images", help=".npy file of uint8 images, [N, H, W, C]")
    parser.add_argument("--image_conditions", help=".npy file of their conditions, [N, ...]")
    parser.add_argument("--output", default="samples.npy", help=".npy file for samples")
    parser.add_argument("--num_samples", type=int, default=16, help="number of samples")
    parser.add_argument(
        "--condition",
        help="of the samples: labels, or the numbers of a vector, comma-separated; or an .npy file "
        "of conditions [N, ...]",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and samples")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="standard deviation of the latents"
    )
    parser.add_argument("--guidance", type=float, help="of a model that takes it; 0 by default")
    flags = parser.parse_args()

    model = tf.saved_model.load(flags.model)
    inputs = model.signatures["sample_uint8"].structured_input_signature[1]
    spec = inputs.get("conditional_input")
    for name in ("condition", "image_conditions"):
        if getattr(flags, name) is not None and spec is None:
            parser.error(f"expected no --{name}: the model takes no condition")
    if flags.images:
        if spec is not None and not flags.image_conditions and not hasattr(model, "classify"):
            parser.error(f"expected --image_conditions, {spec}")
        evaluate(model, tf.constant(np.load(flags.images)), flags, spec)

    given = {}
    if "guidance" in inputs:
        given["guidance"] = flags.guidance or 0.0
    elif flags.guidance is not None:
        parser.error("expected no --guidance: the model takes none")
    if spec is not None:
        if flags.condition is None and flags.images:
            return
        if flags.condition is None:
            parser.error(f"expected a --condition of the samples, {spec}")
        conditions = read_conditions(flags.condition, spec)
        # Cycles through the conditions, one for each sample.
        conditions = np.resize(conditions, (flags.num_samples, *conditions.shape[1:]))
        given["conditional_input"] = tf.constant(conditions, spec.dtype)
    samples = model.sample_uint8(
        num_samples=flags.num_samples, seed=flags.seed, temperature=flags.temperature, **given
    )["images"]
    np.save(flags.output, samples.numpy())
    print(f"wrote {flags.num_samples} samples to {flags.output}")


def evaluate(
    model: tf.Module, images: tf.Tensor, flags: argparse.Namespace, spec: tf.TensorSpec | None
) -> None:
    """Prints bits/dim, moments of the latents and, with classes, the accuracy."""
    conditions, given = None, {}
    if flags.image_conditions:
        conditions = tf.constant(np.load(flags.image_conditions), spec.dtype)
        given["conditional_input"] = conditions
    if spec is None or conditions is not None:
        bits = model.bits_per_dim_uint8(images, seed=flags.seed, **given)["bits_per_dim"]
        print(f"{len(images)} images: {float(tf.reduce_mean(bits)):.3f} bits/dim")
        latents = model.encode_uint8(images, seed=flags.seed, **given)["latents"]
        print(f"standard deviation of their latents: {float(tf.math.reduce_std(latents)):.3f}")
    if hasattr(model, "classify_uint8"):
        labels = model.classify_uint8(images, seed=flags.seed)["labels"]
        print(f"most probable classes: {labels.numpy().tolist()}")
        if conditions is not None:
            print(f"accuracy: {np.mean(labels == conditions):.1%}")


def read_conditions(text: str, spec: tf.TensorSpec) -> np.ndarray:
    """Returns labels [N], one vector [1, K], or the array in a file."""
    if text.endswith(".npy"):
        return np.load(text)
    numbers = [float(each) for each in text.split(",")]
    return np.array(numbers if spec.dtype.is_integer else [numbers])


if __name__ == "__main__":
    main()
