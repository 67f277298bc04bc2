"""hiera-serve on a Ray cluster: each replica is the whole server behind Ray's HTTP proxy, as many as the load asks for.

    client ──▶ Ray's proxy ──▶ replica: create_app, media workers, engines     1 … max_replicas, on any node
                          └──▶ replica: …

    serve run deploy.ray.application:build cpus=2 max_replicas=4      on one machine
    serve deploy deploy/ray/serve.yaml                                on a cluster (see that file)

A replica takes requests once its models are proven, and is replaced when its server says that only a restart would
help.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field
from ray import serve
from ray.serve import Application

from app.main import create_app
from app.settings import Settings, load_settings

_POLL_S = 0.1


class Arguments(BaseModel, extra="forbid"):
    """What a deployment may choose.

    Attributes:
        cpus, gpus: what Ray reserves for one replica; the engine's threads and the media workers follow the CPUs.
        min_replicas, max_replicas: between them Ray starts as many as needed; the least may be 0.
        target_ongoing_requests: open requests of one replica that are wanted; more of them add replicas, fewer take
            some away. About the rows of one useful batch, see `/models`.
        max_ongoing_requests: the most that a replica is sent at a time. The rest waits in the proxy.
        upscale_delay_s, downscale_delay_s: how long the load must have asked for it.
        start_timeout_s: for a replica's models to be proven.
        settings: of the server, by name (`docs/configuration.md`), over those of the environment.
    """

    cpus: float = Field(default=2, gt=0)
    gpus: float = Field(default=0, ge=0)
    min_replicas: int = Field(default=1, ge=0)
    max_replicas: int = Field(default=2, ge=1)
    target_ongoing_requests: float = Field(default=8, gt=0)
    max_ongoing_requests: int = Field(default=64, ge=1)
    upscale_delay_s: float = Field(default=10, ge=0)
    downscale_delay_s: float = Field(default=300, ge=0)
    start_timeout_s: float = Field(default=600, gt=0)
    settings: dict[str, Any] = {}


def build(chosen: Arguments | dict[str, Any]) -> Application:
    """The Ray Serve application. `serve run` and a Serve config file hand over a mapping."""
    arguments = Arguments.model_validate(chosen)

    def build_replica() -> FastAPI:
        return replica_app(replica_settings(arguments), arguments.start_timeout_s)

    deployment = serve.deployment(
        name="hiera",
        ray_actor_options={"num_cpus": arguments.cpus, "num_gpus": arguments.gpus},
        autoscaling_config={
            "min_replicas": arguments.min_replicas,
            "max_replicas": arguments.max_replicas,
            "target_ongoing_requests": arguments.target_ongoing_requests,
            "upscale_delay_s": arguments.upscale_delay_s,
            "downscale_delay_s": arguments.downscale_delay_s,
        },
        max_ongoing_requests=arguments.max_ongoing_requests,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=replica_settings(arguments).shutdown_timeout_seconds + 5,
    )
    application: Application = deployment(serve.ingress(build_replica)(Replica)).bind()
    return application


class Replica:
    """What Ray Serve asks of a replica besides its application."""

    app: FastAPI  # set by `serve.ingress`

    def check_health(self) -> None:
        """Raises when the server cannot recover: Ray then replaces the replica."""
        reason = self.app.state.server.hopeless_reason()
        if reason is not None:
            raise RuntimeError(reason)


def replica_settings(arguments: Arguments) -> Settings:
    """The settings of one replica: it has a share of a node, where the server by itself would take all cores."""
    cores = max(1, round(arguments.cpus))
    share = {"engine_threads": cores, "image_workers": cores, "video_workers": max(1, cores // 2)}
    return load_settings(share | arguments.settings)


def replica_app(settings: Settings, start_timeout_s: float) -> FastAPI:
    """The server, whose startup lasts until it is ready: Ray sends requests to a replica from then on.

    Raises:
        RuntimeError: at startup, when it does not get ready.
    """
    app = create_app(settings)
    serve_models = app.router.lifespan_context

    @asynccontextmanager
    async def ready_first(app: FastAPI) -> AsyncIterator[Any]:
        async with serve_models(app) as state:
            await _wait_until_ready(app, start_timeout_s)
            yield state

    app.router.lifespan_context = ready_first
    return app


async def _wait_until_ready(app: FastAPI, timeout_s: float) -> None:
    server = app.state.server
    try:
        async with asyncio.timeout(timeout_s):
            while server.unready_reason() is not None:
                if (reason := server.hopeless_reason()) is not None:
                    raise RuntimeError(reason)
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise RuntimeError(f"not ready within {timeout_s:g} s: {server.unready_reason()}") from None
