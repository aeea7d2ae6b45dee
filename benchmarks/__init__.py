"""Speed, memory and bits/dim of this package, measured against other implementations."""

import os

# TensorFlow reads this when it is imported, here and in child processes. Its default enables oneDNN
# only on x86 processors with VNNI instructions; PyTorch always uses it.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
