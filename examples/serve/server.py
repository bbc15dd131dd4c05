"""The deployment: HTTP in, PNG out.

Without `from __future__ import annotations`: FastAPI reads the types of the routes, and where Serve
has sent the class to a replica it would find their names only.
"""

import asyncio
import io
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from ray import serve
from ray.serve import Application

from examples.serve.orders import Order, RefusedError
from examples.serve.painter import Painter
from examples.serve.settings import Settings

REPLICA = "x-replica"
"""Of a response: the process that painted it."""

_HEALTH_PERIOD, _HEALTH_TIMEOUT = 5.0, 30.0  # seconds
_routes = FastAPI()


def application(settings: Settings, gpus: int) -> Application:
    """For `serve.run`.

    Args:
        settings: of the server.
        gpus: of the cluster; each replica gets one whole, or `settings.threads` CPUs where there
            is none.
    """
    resources = {"num_gpus": 1} if gpus else {"num_cpus": settings.threads}
    deployed = PictureServer.options(
        num_replicas=settings.replicas or max(1, gpus),
        ray_actor_options=resources,
        max_ongoing_requests=settings.lanes,
        max_queued_requests=settings.queued,
    )
    return deployed.bind(settings)


@serve.deployment(health_check_period_s=_HEALTH_PERIOD, health_check_timeout_s=_HEALTH_TIMEOUT)
@serve.ingress(_routes)
class PictureServer:
    """One replica: a model on one device, and a thread for each of its lanes."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._settings = settings
        self._painter = Painter(settings, device)
        self._threads = ThreadPoolExecutor(settings.lanes, "lane")

    @_routes.post("/pictures")
    async def pictures(self, request: Request) -> Response:
        """An order as JSON (`orders.Order.read`) to a PNG."""
        try:
            order = Order.read(await request.body(), self._settings)
        except RefusedError as error:
            said = {"error": type(error).__name__, "message": str(error)}
            return JSONResponse(said, error.status)
        png = await self._paint(order)
        return Response(png, media_type="image/png", headers={REPLICA: str(os.getpid())})

    @_routes.get("/status")
    async def status(self) -> dict[str, Any]:
        """Of one replica, whichever answers."""
        return {"process": os.getpid(), **self._painter.about()}

    def check_health(self) -> None:
        """Asked by Serve, which starts another replica where it raises."""
        self._painter.check()

    async def _paint(self, order: Order) -> bytes:
        """In a thread. Serve cancels this task where the client is gone."""
        gone = threading.Event()
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, self._png, order, gone)
        except asyncio.CancelledError:
            gone.set()
            raise

    def _png(self, order: Order, gone: threading.Event) -> bytes:
        file = io.BytesIO()
        self._painter.paint(order, gone).save(file, "png")
        return file.getvalue()
