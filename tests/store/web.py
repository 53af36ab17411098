"""A web server for the tests: one directory, with or without ranges; it counts what it sends."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


class Served:
    """``requests`` are the paths asked for with the number of bytes that were sent for each."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.requests: list[tuple[str, int]] = []

    def n_bytes(self) -> int:
        return sum(size for _, size in self.requests)


@contextmanager
def served(folder: Path, *, ranges: bool = True) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            file = folder / self.path.lstrip("/")
            if not file.is_file():
                seen.requests.append((self.path, 0))
                self.send_error(404)
                return
            content, status = file.read_bytes(), 200
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if ranges and asked:
                content, status = content[int(asked[1]) : int(asked[2]) + 1], 206
            seen.requests.append((self.path, len(content)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        seen = Served(f"http://127.0.0.1:{server.server_address[1]}")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()
