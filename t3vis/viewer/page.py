"""The files of the page: read and compressed once, then sent from memory, so that no request names a path on disk."""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

STATIC = Path(__file__).parent / "static"


@dataclass(frozen=True)
class _File:
    plain: bytes
    packed: bytes
    media_type: str
    etag: str


def page_files(folder: Path = STATIC) -> Callable[[Request], Awaitable[Response]]:
    """What answers a request for a file of the page, by ``path_params["path"]``; for no name with ``index.html``."""
    files = {file.relative_to(folder).as_posix(): _read(file) for file in folder.rglob("*") if file.is_file()}

    async def answer(request: Request) -> Response:
        file = files.get(request.path_params["path"] or "index.html")
        if file is None:
            raise HTTPException(404, "the page has no such file.")
        headers = {"etag": file.etag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(file.packed, media_type=file.media_type, headers={**headers, "content-encoding": "gzip"})
        return Response(file.plain, media_type=file.media_type, headers=headers)

    return answer


def _read(file: Path) -> _File:
    plain = file.read_bytes()
    digest = hashlib.blake2b(plain, digest_size=8).hexdigest()
    media_type = mimetypes.guess_type(file.name)[0] or "text/plain"
    return _File(plain, gzip.compress(plain, mtime=0), media_type, f'W/"{digest}"')
