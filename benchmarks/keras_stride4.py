"""Time a training step of README 003's program: its network in Keras, Adam, batch 64, float32.

The reference for `python benchmarks/baseline.py experiment=stride4_mnist`. TensorFlow is not a dependency of this
project: `pip install tensorflow-cpu` in a separate environment, then `python benchmarks/keras_stride4.py`.
The images are noise, 32 x 32 with three channels as there; the time of a step does not depend on their content.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import tensorflow as tf
from keras import callbacks, layers, losses, models

BATCH = 64
STEPS = 56  # of one epoch
WARMUP = 8


def network() -> models.Sequential:
    """Return README 003's layers in its order; LRN with TensorFlow's defaults, before ReLU."""
    chain = [layers.Input((32, 32, 3)), layers.Resizing(224, 224, interpolation="bilinear")]
    for channels, kernel in ((96, 11), (256, 5)):
        chain += [
            layers.Conv2D(channels, kernel, strides=4, padding="same"),
            layers.Lambda(tf.nn.local_response_normalization),
            layers.Activation("relu"),
            layers.MaxPooling2D(3, strides=2),
        ]
    for channels in (384, 384, 256):
        chain += [layers.Conv2D(channels, 3, strides=4, padding="same"), layers.Activation("relu")]
    chain.append(layers.Flatten())
    for _ in range(2):
        chain += [layers.Dense(4096, activation="relu"), layers.Dropout(0.5)]
    return models.Sequential([*chain, layers.Dense(10, activation="softmax")])


class Clock(callbacks.Callback):
    """Record the time at the end of each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    """Train one epoch of noise and print the median step."""
    random = np.random.default_rng(0)
    images = random.random((BATCH * STEPS, 32, 32, 3), dtype=np.float32)
    labels = random.integers(0, 10, BATCH * STEPS)
    model, clock = network(), Clock()
    model.compile(optimizer="adam", loss=losses.sparse_categorical_crossentropy, metrics=["accuracy"])
    assert model.count_params() == 21_622_154
    model.fit(images, labels, batch_size=BATCH, epochs=1, verbose=0, callbacks=[clock])
    times = np.diff(clock.ends)[WARMUP:]
    median = statistics.median(times)
    spread = f"n = {len(times)}, sd {1e3 * statistics.pstdev(times):.0f} ms"
    print(
        f"tensorflow {tf.__version__}: {1e3 * median:.0f} ms a step ({spread}), {BATCH / median:.0f} images/s"
    )


if __name__ == "__main__":
    main()
