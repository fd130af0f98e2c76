"""A web server that answers range requests, with faults on demand; an S3 server."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Serves ``folder``. ``faults``: what is done instead of an answer, one for each request, the first one first.

    ``cut``: half of the bytes, ``slow``: after half a second, ``short``: another range, ``busy``: status 503,
    ``whole``: the range is ignored. ``delay``: seconds before every answer.
    """

    daemon_threads = True
    request_queue_size = 128  # workers connect all at once; a connection beyond the queue would hang

    def __init__(self, folder: Path, port: int = 0, delay: float = 0.0):
        super().__init__(("127.0.0.1", port), _Handler)
        self.folder, self.faults, self.requests = folder, list[str](), list[str]()
        self.gone, self.delay = False, delay

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        if self.server.gone:  # connections that were open end too
            self.close_connection = True
            return
        time.sleep(self.server.delay)
        path = self.server.folder / self.path.lstrip("/")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        self.server.requests.append(self.path)
        fault = self.server.faults.pop(0) if self.server.faults and asked else ""
        if fault == "busy" or not path.is_file():
            self.send_response(503 if fault else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = path.read_bytes()
        size, status = len(data), 200
        if asked and fault != "whole":
            start, stop = int(asked[1]), int(asked[2]) + 1
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data, status = data[start:stop] if fault != "short" else data[start : max(start + 1, stop - 100)], 206
        if fault == "slow":
            time.sleep(0.5)
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}-{size}"')
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{size}")
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
        if fault == "cut":
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing on the screen."""


@contextmanager
def serving(folder: Path, port: int = 0, delay: float = 0.0) -> Iterator[Server]:
    """A web server within the block."""
    server = Server(folder, port, delay)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.gone = True
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def s3(folder: Path, bucket: str = "data") -> Iterator[dict[str, str]]:
    """A bucket with the files of ``folder``; -> options of the storage."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"endpoint_url": f"http://{host}:{port}", "key": "key", "secret": "secret"}
        client = boto3.client(
            "s3",
            endpoint_url=options["endpoint_url"],
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=bucket)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), bucket, path.relative_to(folder).as_posix())
        yield options
    finally:
        server.stop()
