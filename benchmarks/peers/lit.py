# mypy: ignore-errors
"""LitServe, with its batching on."""

import os

import litserve
import numpy as np

from benchmarks.peers.model import ENGINE, MAX_BATCH, PORT, answer, load_model, preprocess


class Hiera(litserve.LitAPI):
    def setup(self, device):
        self.model = load_model()

    def decode_request(self, request):
        return preprocess(request["file"].file.read())

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, batch):
        return self.model(batch)

    def unbatch(self, probabilities):
        return list(probabilities)

    def encode_response(self, probabilities):
        return answer(probabilities)


if __name__ == "__main__":
    # Decoding happens in the workers, so without a model two of them fill two cores; an engine fills them by itself.
    workers = int(os.environ.get("PEER_WORKERS", "2" if ENGINE == "noop" else "1"))
    api = Hiera(max_batch_size=MAX_BATCH, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=workers)
    server.run(host="127.0.0.1", port=PORT, log_level="warning", generate_client_file=False)
