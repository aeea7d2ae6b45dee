r"""Scores images and draws samples with an exported model: TensorFlow is all it needs.

    python -c "import keras, tfp_realnvp; keras.models.load_model('flow.keras').export('flow/1')"
    python examples/serve.py flow/1 --images=images.npy --output=samples.npy

TensorFlow Serving takes the same folder, whose name is the model's version:

    docker run -p 8501:8501 -v "$PWD/flow:/models/flow" -e MODEL_NAME=flow tensorflow/serving

Its REST interface takes the inputs of a signature by name. Here two grey-level images of 2 x 2
pixels with one channel, and the seed of the noise that makes them continuous:

    curl http://localhost:8501/v1/models/flow:predict -d '{
      "signature_name": "bits_per_dim_uint8",
      "inputs": {
        "images": [[[[0], [17]], [[255], [3]]], [[[8], [8]], [[9], [9]]]],
        "seed": 0
      }
    }'

The answer has one output, which the interface then leaves unnamed: `{"outputs": [7.98, 5.12]}`.
Sixteen samples, as grey levels, the same for the same seed:

    curl http://localhost:8501/v1/models/flow:predict -d '{
      "signature_name": "sample_uint8",
      "inputs": {"num_samples": 16, "seed": 1, "temperature": 0.7}
    }'
"""

import argparse

import numpy as np
import tensorflow as tf


def main() -> None:
    parser = argparse.ArgumentParser(description="Uses an exported model.")
    parser.add_argument("model", help="folder of the SavedModel")
    parser.add_argument("--images", help=".npy file of uint8 images, [N, H, W, C]")
    parser.add_argument("--output", default="samples.npy", help="for samples, uint8")
    parser.add_argument("--num_samples", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=1.0)
    flags = parser.parse_args()

    model = tf.saved_model.load(flags.model)
    if flags.images:
        images = tf.constant(np.load(flags.images))
        bits = model.bits_per_dim_uint8(images, seed=flags.seed)["bits_per_dim"]
        print(f"{len(images)} images: {float(tf.reduce_mean(bits)):.3f} bits/dim")
        latents = model.encode_uint8(images, seed=flags.seed)["latents"]
        print(
            f"their latents have a standard deviation of {float(tf.math.reduce_std(latents)):.3f}"
        )

    samples = model.sample_uint8(
        num_samples=flags.num_samples, seed=flags.seed, temperature=flags.temperature
    )["images"]
    np.save(flags.output, samples.numpy())
    print(f"{flags.num_samples} samples in {flags.output}")


if __name__ == "__main__":
    main()
