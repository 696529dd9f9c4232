"""The pages and what they need: files of the package, read once, under names that are known beforehand."""

from __future__ import annotations

from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from homespun.serve.errors import Refusal

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}


class Pages:
    """The files by name; no other name leads anywhere."""

    def __init__(self) -> None:
        folder = files("homespun.serve") / "static"
        found = [each for each in folder.iterdir() if each.is_file()] if folder.is_dir() else []
        known = [(each, "." + each.name.rpartition(".")[2]) for each in found]
        self._files = {each.name: (each.read_bytes(), TYPES[end]) for each, end in known if end in TYPES}

    async def playground(self, request: Request) -> Response:
        """GET /."""
        return self._file("index.html")

    async def live(self, request: Request) -> Response:
        """GET /live."""
        return self._file("live.html")

    async def learn(self, request: Request) -> Response:
        """GET /learn."""
        return self._file("learn.html")

    async def static(self, request: Request) -> Response:
        """GET /static/{name}."""
        return self._file(request.path_params["name"])

    def _file(self, name: str) -> Response:
        if name not in self._files:
            raise Refusal(404, "There is no such page", "not_found")
        data, kind = self._files[name]
        return Response(data, headers={"Content-Type": kind})
