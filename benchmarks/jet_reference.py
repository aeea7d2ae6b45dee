"""Compares Jet with its authors' code: `python -m benchmarks.jet_reference FILE.npz`.

The file contains the weights of a Jet of google-research/big_vision (`models/proj/jet/jet.py`),
images, and the results of the authors' code:

```
config                    side, patch size, couplings, blocks of each network, width, heads
images [N, side, side, C] values in [-1, 1]
latents, log_det [N]      of the map from data to latents, in nats
permutations [L, P² C]    of the channels of each coupling, -1 for spatial ones
weights/couplings/dnn/... by the names of flax, with the coupling as first axis
```

The script loads the weights into a flow composed of the parts of `RealNVPImage.jet`, and prints the
largest differences, relative to the largest value. The exit status is 1 if a difference is above
1e-4. Decoded images are compared in float64: the map to latents contracts, so decoding amplifies
rounding errors of float32.
"""

from __future__ import annotations

import itertools
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np

import tfp_realnvp as tfr

__all__ = ["differences", "loaded_flow", "main"]

_TOLERANCE = 1e-4
_PATTERNS = ("checkerboard", "vertical_stripes", "horizontal_stripes")
_WITHOUT_LIMIT = "inverse images in float32"
_MULTI_HEAD = "MultiHeadDotProductAttention_0"


def differences(reference: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Returns the largest relative differences from a reference, for both directions of a flow."""
    flow, precise = (loaded_flow(reference, dtype) for dtype in ("float32", "float64"))
    latents, log_det = flow.inverse_and_log_det(reference["images"])
    images, inverse_log_det = flow.forward_and_log_det(reference["latents"])
    precise_images = precise.forward(reference["latents"].astype(np.float64))
    return {
        "latents": _difference(latents, reference["latents"]),
        "log det": _difference(log_det, reference["log_det"]),
        "log det of the inverse": _difference(-inverse_log_det, reference["log_det"]),
        "inverse images": _difference(precise_images, reference["images"]),
        _WITHOUT_LIMIT: _difference(images, reference["images"]),
    }


def loaded_flow(reference: Mapping[str, np.ndarray], dtype: str) -> tfr.ImageFlow:
    """Returns the flow with the weights of a reference."""
    side, patch_size, _, num_blocks, width, num_heads = map(int, reference["config"])
    spatial = itertools.cycle(tfr.SpatialMask(*m) for m in itertools.product(_PATTERNS, (0, 1)))
    network_fn = tfr.network_of(tfr.VisionTransformer, num_blocks=num_blocks, num_heads=num_heads)
    masks = [
        next(spatial) if order[0] < 0 else tfr.ChannelMask(permutation=order)
        for order in reference["permutations"]
    ]
    layer = tfr.coupling_layer(network_fn, width, transformer="sigmoid_affine")
    image_shape = side, side, reference["images"].shape[-1]
    flow = tfr.patch_flow(image_shape, patch_size, masks, layer, dtype=dtype)
    prefix = "weights/couplings/dnn/"
    names = [name for name in reference if name.startswith(prefix)]
    couplings = [part for part in flow.bijectors if isinstance(part, tfr.Coupling)]
    for i, coupling in enumerate(couplings):
        weights = {name.removeprefix(prefix): reference[name][i] for name in names}
        for name, value in _renamed(weights, num_blocks, width).items():
            variable = getattr(coupling.network, name)
            variable.assign(value.reshape(variable.shape))
    return flow


def _renamed(
    weights: Mapping[str, np.ndarray], num_blocks: int, width: int
) -> dict[str, np.ndarray]:
    """Renames and stacks the weights of a network as in `VisionTransformer`."""
    blocks = [f"vit/encoderblock_{i}" for i in range(num_blocks)]

    def stacked(name: str) -> np.ndarray:
        return np.stack([weights[f"{block}/{name}"] for block in blocks])

    def norms(name: str) -> np.ndarray:
        both = [f"{block}/LayerNorm_{i}" for block in blocks for i in range(2)]
        return np.stack([weights[f"{norm}/{name}"] for norm in (*both, "vit/encoder_norm")])

    qkv = [f"{_MULTI_HEAD}/{name}" for name in ("query", "key", "value")]
    kernels = [stacked(f"{name}/kernel").reshape(num_blocks, width, width) for name in qkv]
    biases = [stacked(f"{name}/bias").reshape(num_blocks, width) for name in qkv]
    return {
        "input_kernel": weights["init_proj/kernel"],
        "input_bias": weights["init_proj/bias"],
        "position_embedding": weights["posemb"],
        "norm_scales": norms("scale"),
        "norm_offsets": norms("bias"),
        "qkv_kernels": np.concatenate(kernels, axis=-1),
        "qkv_biases": np.concatenate(biases, axis=-1),
        "head_kernels": stacked(f"{_MULTI_HEAD}/out/kernel"),
        "head_biases": stacked(f"{_MULTI_HEAD}/out/bias"),
        "mlp1_kernels": stacked("MlpBlock_0/Dense_0/kernel"),
        "mlp1_biases": stacked("MlpBlock_0/Dense_0/bias"),
        "mlp2_kernels": stacked("MlpBlock_0/Dense_1/kernel"),
        "mlp2_biases": stacked("MlpBlock_0/Dense_1/bias"),
        "output_kernel": weights["final_proj/kernel"],
        "output_bias": weights["final_proj/bias"],
    }


def _difference(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


def main(arguments: Sequence[str]) -> int:
    """Prints the differences, and returns the exit status."""
    (path,) = map(pathlib.Path, arguments)
    with np.load(path) as reference:
        found = differences(dict(reference))
    for name, difference in found.items():
        print(f"{name}: {difference:.1e}")
    # NaN fails this comparison.
    within = [found[name] <= _TOLERANCE for name in found if name != _WITHOUT_LIMIT]
    return int(not all(within))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
