# mypy: ignore-errors
"""Triton with a Python model, through pytriton. The photo's bytes go in; the model decodes them, in threads."""

import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.model import MAX_BATCH, PORT, load_model, preprocess

model = load_model()
threads = ThreadPoolExecutor(2)


@batch
def classify(file: np.ndarray):
    rows = np.stack(list(threads.map(preprocess, file[:, 0])))
    probabilities = model(rows)
    best = np.argsort(probabilities, axis=1)[:, ::-1][:, :5]
    return {"class_id": best.astype(np.int32), "probability": np.take_along_axis(probabilities, best, axis=1)}


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    config = TritonConfig(http_address="127.0.0.1", http_port=PORT, allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="hiera",
            infer_func=[classify, classify],
            inputs=[Tensor(name="file", dtype=bytes, shape=(1,))],
            outputs=[
                Tensor(name="class_id", dtype=np.int32, shape=(5,)),
                Tensor(name="probability", dtype=np.float32, shape=(5,)),
            ],
            config=ModelConfig(max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=0)),
        )
        triton.serve()
