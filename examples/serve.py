r"""Evaluates and samples an exported model. Needs only TensorFlow and NumPy.

    python -c "import keras, tfp_realnvp; keras.models.load_model('flow.keras').export('flow/1')"
    python examples/serve.py flow/1 --images=images.npy --output=samples.npy

TensorFlow Serving reads the same folder, whose name is the version of the model:

    docker run -p 8501:8501 -v "$PWD/flow:/models/flow" -e MODEL_NAME=flow tensorflow/serving

Its REST API takes the inputs of a signature by name. Here they are two images of 2×2 pixels with
one channel, and the seed of the dequantization noise:

    curl http://localhost:8501/v1/models/flow:predict -d '{
      "signature_name": "bits_per_dim_uint8",
      "inputs": {
        "images": [[[[0], [17]], [[255], [3]]], [[[8], [8]], [[9], [9]]]],
        "seed": 0
      }
    }'

The API does not name a single output: `{"outputs": [7.98, 5.12]}`. This request returns 16 samples
as gray levels. Equal seeds give equal samples:

    curl http://localhost:8501/v1/models/flow:predict -d '{
      "signature_name": "sample_uint8",
      "inputs": {"num_samples": 16, "seed": 1, "temperature": 0.7}
    }'
"""

import argparse

import numpy as np
import tensorflow as tf


def main() -> None:
    parser = argparse.ArgumentParser(description="Evaluates and samples an exported model.")
    parser.add_argument("model", help="folder of the SavedModel")
    parser.add_argument("--images", help=".npy file of uint8 images, [N, H, W, C]")
    parser.add_argument("--output", default="samples.npy", help=".npy file for samples")
    parser.add_argument("--num_samples", type=int, default=16, help="number of samples")
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and samples")
    parser.add_argument(
        "--temperature", type=float, default=1.0, help="standard deviation of the latents"
    )
    flags = parser.parse_args()

    model = tf.saved_model.load(flags.model)
    if flags.images:
        images = tf.constant(np.load(flags.images))
        bits = model.bits_per_dim_uint8(images, seed=flags.seed)["bits_per_dim"]
        print(f"{len(images)} images: {float(tf.reduce_mean(bits)):.3f} bits/dim")
        latents = model.encode_uint8(images, seed=flags.seed)["latents"]
        print(f"standard deviation of their latents: {float(tf.math.reduce_std(latents)):.3f}")

    samples = model.sample_uint8(
        num_samples=flags.num_samples, seed=flags.seed, temperature=flags.temperature
    )["images"]
    np.save(flags.output, samples.numpy())
    print(f"wrote {flags.num_samples} samples to {flags.output}")


if __name__ == "__main__":
    main()
