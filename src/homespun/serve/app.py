"""The application: every route of the server, behind its guard."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from homespun.errors import HomespunError
from homespun.serve.embedding import PART, embedder_of, ids_of, told
from homespun.serve.errors import Refusal, refusal_of
from homespun.serve.guard import Guard
from homespun.serve.house import House, json_response, refused
from homespun.serve.inspecting import inspect, tokens_of
from homespun.serve.learning import learning
from homespun.serve.pages import Pages
from homespun.serve.reading import read
from homespun.serve.schema import EmbeddingsRequest, InspectRequest
from homespun.serve.served import Served
from homespun.serve.watching import FILES, byte_of, overview, rows_after
from homespun.serve.writing import Writers


def build(house: House, host: str = "127.0.0.1", names: Collection[str] = (), key: str | None = None) -> Starlette:
    """The application for a server that listens at `host`; see `Guard` for `names` and `key`."""
    writers, looks, pages = Writers(house), Looks(house), Pages()
    routes = [
        Route("/v1/completions", writers.completions, methods=["POST"]),
        Route("/v1/chat/completions", writers.chat, methods=["POST"]),
        Route("/v1/embeddings", looks.embeddings, methods=["POST"]),
        Route("/v1/models", looks.models),
        Route("/v1/models/{name}", looks.model),
        Route("/v1/inspect", looks.inspect, methods=["POST"]),
        Route("/v1/runs", looks.runs),
        Route("/v1/runs/{name}/learning", looks.learning),
        Route("/v1/runs/{name}/{file}", looks.rows),
        Route("/health", looks.health),
        Route("/metrics", looks.metrics),
        Route("/", pages.playground),
        Route("/live", pages.live),
        Route("/learn", pages.learn),
        Route("/static/{name}", pages.static),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        house.runs.start()
        try:
            yield
        finally:
            await house.beside(house.runs.close)

    app = Starlette(
        routes=routes,
        middleware=[Middleware(Guard, house=house, host=host, names=names, key=key)],
        exception_handlers={HTTPException: _no_route, Refusal: _refuse, HomespunError: _refuse},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class Looks:
    """The routes that write nothing."""

    def __init__(self, house: House):
        self._house = house

    async def health(self, request: Request) -> Response:
        """GET /health."""
        return json_response({"status": "ok", "models": list(self._house.runs.models)})

    async def metrics(self, request: Request) -> Response:
        """GET /metrics."""
        figures = {name: served.scheduler.figures for name, served in self._house.runs.models.items()}
        text = self._house.metrics.text(figures, self._house.connections)
        return Response(text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return json_response({"object": "list", "data": [_told(each) for each in self._house.runs.models.values()]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{name}."""
        return json_response(_told(self._house.runs.model(request.path_params["name"])))

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        asked = await self._house.beside(read, EmbeddingsRequest, await self._house.body(request))
        scheduler = self._house.runs.model(asked.model).scheduler
        texts = await self._house.beside(ids_of, asked, scheduler.generator, self._house.limits)
        embedder = embedder_of(scheduler.generator)
        steps = await self._house.bounded(scheduler.each(embedder.read(texts, PART)), request.receive)
        scheduler.figures.embedded_tokens += sum(map(len, texts))
        return await self._house.beside(lambda: json_response(told(asked, texts, embedder.join(len(texts), steps))))

    async def inspect(self, request: Request) -> Response:
        """POST /v1/inspect."""
        asked = await self._house.beside(read, InspectRequest, await self._house.body(request))
        served = self._house.runs.model(asked.model)
        scheduler = served.scheduler
        ids = await self._house.beside(tokens_of, asked, scheduler.generator)
        work = scheduler.call(lambda generator: inspect(generator, ids))
        tokens = await self._house.bounded(work, request.receive)
        return json_response({"tokens": tokens, "experts": served.experts})

    async def runs(self, request: Request) -> Response:
        """GET /v1/runs."""
        return json_response({"runs": [overview(each) for each in self._house.runs.all.values()]})

    async def rows(self, request: Request) -> Response:
        """GET /v1/runs/{name}/metrics and .../samples, from a byte on."""
        name, file = request.path_params["name"], request.path_params["file"]
        if name not in self._house.runs.all or file not in FILES:
            raise Refusal(404, "There is no such run or file", "not_found")
        path = self._house.runs.all[name].folder / FILES[file]
        after = byte_of(request.query_params.get("after", "0"))
        return json_response(await self._house.beside(rows_after, path, after))

    async def learning(self, request: Request) -> Response:
        """GET /v1/runs/{name}/learning."""
        name = request.path_params["name"]
        if name not in self._house.runs.all:
            raise Refusal(404, "There is no such run", "not_found")
        return await self._house.beside(lambda: json_response(learning(self._house.runs.all[name])))


def _told(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "homespun"}


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = "This route does not take that method" if error.status_code == 405 else "There is no such route"
    return refused(Refusal(error.status_code, message, "not_found", headers=error.headers))


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, (Refusal, HomespunError))
    return refused(refusal_of(error))
