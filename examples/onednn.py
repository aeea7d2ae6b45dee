"""Turns on oneDNN on all x86 processors. Import it before TensorFlow.

By default TensorFlow uses oneDNN only on processors with AVX-512 VNNI or AVX-VNNI instructions. On
others it makes training about 1.4 times as fast.
"""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
