"""Streams of random numbers that share the seed of a `FlowModel`.

The seed of a stream is `seed ^ stream`, so that the streams of one seed differ.
"""

# The noise of gray levels in step k of training; the seed is (seed, k).
TRAINING_NOISE = 0
# The conditions that step k of training leaves out; the seed is (seed, k).
DROPPED_CONDITIONS = 0xD809
# The noise of gray levels in evaluation, which depends on the gray levels instead of a step.
EVALUATION_NOISE = 0x5EED
