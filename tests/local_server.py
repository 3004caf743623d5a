"""A web server in a thread, for tests of downloads."""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from datasets.originals import Original


class Server(ThreadingHTTPServer):
    """Serves bytes from memory, with or without ranges and ETags, and closes the connection early when told to."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}          # name -> bytes sent before each of the next hang-ups
        self.failures: list[int] = []                 # status codes of the next answers
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True
        self.etags = True
        self.content_type = "application/octet-stream"

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def sources(self) -> dict[str, Original]:
        return {name: Original(name, self.url(name)) for name in self.files}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, name = self.server, self.path.strip("/")
        server.requests.append((name, self.headers.get("Range")))
        if server.failures or name not in server.files:
            self.send_error(server.failures.pop(0) if server.failures else 404)
            return
        body = server.files[name]
        etag = f'"{hashlib.md5(body).hexdigest()}"'
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(first.group(1)) if first and server.ranges else 0
        if self.headers.get("If-Range") not in (None, etag):
            start = 0
        if start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        if server.etags:
            self.send_header("ETag", etag)
        self.send_header("Content-Type", server.content_type)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        cut = server.cuts.get(name)
        self.wfile.write(body[start:cut.pop(0)] if cut else body[start:])
        self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def running_server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
