"""Speed, memory and quality of this package, side by side with others."""

import os

# Read when TensorFlow is imported, here and in the workers. By itself TensorFlow has oneDNN only on
# x86 processors with instructions for neural networks; PyTorch has it on all.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
