# mypy: ignore-errors
"""Ray Serve, with its batching."""

import asyncio
import signal

import numpy as np
import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers.model import ENGINE, MAX_BATCH, PORT, answer, load_model, preprocess


@serve.deployment(
    num_replicas=2 if ENGINE == "noop" else 1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.5}
)
class Hiera:
    def __init__(self):
        self.model = load_model()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.001)
    async def predict(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        return list(await asyncio.to_thread(self.model, np.stack(rows)))

    async def __call__(self, request: Request) -> dict:
        form = await request.form()
        data = await form["file"].read()
        rows = await asyncio.to_thread(preprocess, data)
        return answer(await self.predict(rows))


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": PORT}, logging_config={"enable_access_log": False, "log_level": "WARNING"})
    serve.run(Hiera.bind(), route_prefix="/classify")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
