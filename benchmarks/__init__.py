"""Benchmarks that compare speed, memory and bits/dim of this package with other implementations."""

import os

# TensorFlow reads the variable at import, here and in child processes. By default it enables oneDNN
# only on x86 processors with VNNI instructions; PyTorch always uses oneDNN.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
