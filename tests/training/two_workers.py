"""What each of two workers runs: `two_workers.py FOLDER`, with `TF_CONFIG` in the environment."""

import json
import pathlib
import sys

import strategy_testing as st
import tensorflow as tf

if __name__ == "__main__":
    # Before anything else makes a tensor.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    # TensorFlow's optimizations of graphs take longer than they save in so few steps.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    folder = pathlib.Path(sys.argv[1])
    results = st.train(strategy, folder / "training")
    index = strategy.cluster_resolver.task_id
    (folder / f"results{index}.json").write_text(json.dumps(results))
