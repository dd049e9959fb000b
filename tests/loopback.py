"""A real HTTP server on loopback that serves files, with ranges and validators, and fails as it is told to."""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    Attributes:
        status: answer with this status and nothing else.
        after: send this many bytes of the body, then cut the connection.
        headers: sent with a status.
    """

    status: int | None = None
    after: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Served:
    """A file as the server has it.

    Attributes:
        content: its bytes.
        etag: the ETag as sent; None sends none; "" is that of the content.
        modified: the Last-Modified as sent.
        ranges: whether parts of it can be asked for.
        length: "known" sends Content-Length, "chunked" sends chunks, "unknown" ends with the connection.
        headers: sent besides.
        stall: stand still after this many bytes until the server ends.
        faults: used up one per request, then all goes well.
    """

    content: bytes
    etag: str | None = ""
    modified: str | None = None
    ranges: bool = True
    length: str = "known"
    headers: dict[str, str] = field(default_factory=dict)
    stall: int | None = None
    faults: list[Fault] = field(default_factory=list)

    def all_headers(self) -> dict[str, str]:
        etag = f'"{sha256(self.content).hexdigest()}"' if self.etag == "" else self.etag
        validators = {"ETag": etag, "Last-Modified": self.modified}
        return self.headers | {name: value for name, value in validators.items() if value is not None}


class Loopback(ThreadingHTTPServer):
    """Serves `files`, by path; `requests` has each request's method, path and Range."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.ending = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def serve(self, path: str, content: bytes, *faults: Fault) -> str:
        """Serves a file from now on; returns its address."""
        self.files[path] = Served(content, faults=list(faults))
        return self.address + path

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is none of ours."""


@contextmanager
def serving() -> Iterator[Loopback]:
    """A server for as long as the context lasts."""
    server = Loopback()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.ending.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Loopback  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append((self.command, path, self.headers.get("Range")))
        served = self.server.files.get(path)
        if served is None:
            return self._status(404, {"X-Error-Code": "EntryNotFound"})
        fault = served.faults.pop(0) if served.faults and self.command == "GET" else Fault()
        if fault.status is not None:
            return self._status(fault.status, fault.headers)
        content, status, headers = served.content, 200, served.all_headers()
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        wanted = self.headers.get("If-Range")
        if begin and served.ranges and (wanted is None or wanted in headers.values()):
            first = int(begin[1])
            if first >= len(content):
                return self._status(416, {})
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
            content, status = content[first:], 206
        self._send(status, headers, content, served, fault)

    def _status(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, status: int, headers: dict[str, str], content: bytes, served: Served, fault: Fault) -> None:
        self.send_response(status)
        if served.length == "known":
            headers["Content-Length"] = str(len(content))
        elif served.length == "chunked":
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Connection"] = "close"
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        body = content[: fault.after]
        if served.length == "chunked":
            parts = (body[at : at + 99] for at in range(0, len(body), 99))
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
            body += b"0\r\n\r\n" * (fault.after is None)
        self.wfile.write(body[: served.stall])
        if served.stall is not None:
            self.server.ending.wait()
        self.close_connection = self.close_connection or fault.after is not None or served.length == "unknown"


def serve_hub(server: Loopback, name: str, files: dict[str, bytes], commit: str = "c0ffee" + "0" * 34) -> str:
    """Serves a data set as the Hugging Face hub does: what it is, its tree, and its files at a commit.

    Returns:
        What HF_ENDPOINT has to be.
    """
    api, resolve = f"/api/datasets/{name}", f"/datasets/{name}/resolve"
    siblings = [{"rfilename": path} for path in files]
    info = {"id": name, "sha": commit, "private": False, "gated": False, "siblings": siblings, "tags": []}
    for path in (api, f"{api}/revision/{commit}", f"{api}/revision/main"):
        server.serve(path, json.dumps(info).encode())
    folders = {"", *(path.rpartition("/")[0] for path in files)}
    for folder in folders:
        entries = [_entry(path, content) for path, content in files.items() if path.rpartition("/")[0] == folder]
        if not folder:
            entries += [{"type": "directory", "path": other, "oid": "0" * 40} for other in folders if other]
        server.serve(f"{api}/tree/{commit}" + f"/{folder}" * bool(folder), json.dumps(entries).encode())
    for path, content in files.items():
        for revision in (commit, "main"):
            server.files[f"{resolve}/{revision}/{path}"] = Served(content, headers={"X-Repo-Commit": commit})
    return server.address


def _entry(path: str, content: bytes) -> dict[str, object]:
    digest = sha256(content).hexdigest()
    lfs = {"oid": digest, "size": len(content), "pointerSize": 130}
    return {"type": "file", "path": path, "size": len(content), "oid": digest[:40], "lfs": lfs}
