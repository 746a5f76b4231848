"""A real HTTP server on loopback in the place of vLLM: it replies by a function, and misbehaves as it is told."""

from __future__ import annotations

import base64
import json
import math
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Reply = str | Mapping[str, float]
"""What the judge says: a text, or the probability of each first token."""


@dataclass(frozen=True)
class Seen:
    """A request as it came: the turns' texts, the picture's bytes (of the first turn), and the rest of its JSON."""

    body: Mapping[str, Any]
    texts: tuple[str, ...]
    picture: bytes
    roles: tuple[str, ...]
    authorization: str


@dataclass(frozen=True)
class Trouble:
    """What one request meets instead of a reply: an HTTP status with a body and headers, or something worse.

    kind: ``status``; ``drop`` (the connection ends without an answer), ``half`` (within the body), ``truncated`` (JSON
    that ends too early, of the right length), ``no_choices``, ``no_text``, ``drip`` (a byte a time).
    seconds: wait before anything else, or between the bytes of ``drip``.
    """

    kind: str
    status: int = 500
    said: str = "made to fail"
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def say_score(seen: Seen) -> Reply:
    """A score of the picture that depends on its bytes and the question alone: JSON as benchmarks ask for it."""
    value = (sum(seen.picture) + len(seen.texts[-1])) % 101
    return json.dumps({"score": value, "explanation": "made up by a stand-in"})


class JudgeServer:
    """Serves ``/v1/models`` and ``/v1/chat/completions``; a context manager.

    reply: what is said to a request. trouble: (the request, how often the same was asked before) -> what it meets, or
    None. seconds: that a request takes. models: names that it knows; another is answered 404. key: that it wants.
    takes_schema: whether it takes ``response_format``; else it answers 400. slots: requests that it works at at once,
    the others wait, as in a real server (0: all).
    """

    def __init__(
        self,
        reply: Callable[[Seen], Reply] = say_score,
        trouble: Callable[[Seen, int], Trouble | None] = lambda seen, before: None,
        seconds: float = 0.0,
        models: Sequence[str] = ("stand-in",),
        key: str = "",
        takes_schema: bool = True,
        slots: int = 0,
    ) -> None:
        self.reply = reply
        self.trouble = trouble
        self.seconds = seconds
        self.models = tuple(models)
        self.key = key
        self.takes_schema = takes_schema
        self.seen: list[Seen] = []
        self.most_at_once = 0
        self.connections: set[socket.socket] = set()
        self._slots = threading.Semaphore(slots) if slots else None
        self._asked: Counter[str] = Counter()
        self._busy = 0
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self) -> str:
        """The address, as ``--judge-url`` wants it."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        # Who kept a connection open finds nobody there any more.
        with self._lock:
            for connection in list(self.connections):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()

    # ---- in the request's thread

    def answer(self, handler: _Handler, body: Mapping[str, Any]) -> None:
        """One request to ``/v1/chat/completions``."""
        seen = _seen(body, handler.headers.get("Authorization", ""))
        asked = json.dumps([body["messages"], body["max_tokens"]])
        with self._lock:
            before = self._asked[asked]
            self._asked[asked] += 1
            self.seen.append(seen)
            self._busy += 1
            self.most_at_once = max(self.most_at_once, self._busy)
        with self._slots or nullcontext():
            time.sleep(self.seconds)
            with self._lock:
                # Before the answer: who gets it may ask again at once.
                self._busy -= 1
            self._reply(handler, body, seen, before)

    def _reply(self, handler: _Handler, body: Mapping[str, Any], seen: Seen, before: int) -> None:
        if self.key and seen.authorization != f"Bearer {self.key}":
            handler.send(401, {"error": {"message": f"Incorrect API key provided: {seen.authorization}"}})
        elif body["model"] not in self.models:
            handler.send(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
        elif "response_format" in body and not self.takes_schema:
            handler.send(400, {"error": {"message": "response_format json_schema is not supported"}})
        else:
            self._answer(handler, seen, self.trouble(seen, before))

    def _answer(self, handler: _Handler, seen: Seen, trouble: Trouble | None) -> None:
        whole = json.dumps(completion(self.reply(seen), int(seen.body["max_tokens"]))).encode()
        if trouble is None:
            handler.send_bytes(200, whole)
            return
        if trouble.kind != "drip":
            time.sleep(trouble.seconds)
        if trouble.kind == "status":
            handler.send(trouble.status, {"error": {"message": trouble.said}}, trouble.headers)
        elif trouble.kind == "truncated":
            handler.send_bytes(200, whole[: len(whole) // 2])
        elif trouble.kind == "no_choices":
            handler.send(200, {"error": {"message": trouble.said}})
        elif trouble.kind == "no_text":
            handler.send(200, {"choices": [{"message": {"role": "assistant", "content": None}}]})
        elif trouble.kind == "drip":
            handler.send_bytes(200, whole, drip=trouble.seconds)
        else:
            handler.send_bytes(200, whole, only=len(whole) // 2 if trouble.kind == "half" else -1)


def completion(reply: Reply, max_tokens: int = 512) -> dict[str, Any]:
    """The JSON of a reply; a text is cut off behind ``max_tokens`` words."""
    if isinstance(reply, str):
        words = reply.split(" ")
        cut = len(words) > max_tokens
        message = {"role": "assistant", "content": " ".join(words[:max_tokens])}
        return {"choices": [{"index": 0, "message": message, "finish_reason": "length" if cut else "stop"}]}
    logprobs = {token: math.log(p) if p > 0 else -9999.0 for token, p in reply.items()}
    top: list[dict[str, Any]] = [{"token": token, "logprob": logprob} for token, logprob in logprobs.items()]
    top.sort(key=lambda entry: -entry["logprob"])
    content = [top[0] | {"top_logprobs": top}]
    message = {"role": "assistant", "content": top[0]["token"]}
    return {"choices": [{"message": message, "logprobs": {"content": content}, "finish_reason": "length"}]}


def _seen(body: Mapping[str, Any], authorization: str) -> Seen:
    texts, picture = [], b""
    for message in body["messages"]:
        content = message["content"]
        parts: list[dict[str, Any]] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        texts.append("".join(part["text"] for part in parts if part["type"] == "text"))
        for part in parts:
            if part["type"] == "image_url":
                picture = base64.b64decode(part["image_url"]["url"].partition("base64,")[2])
    return Seen(body, tuple(texts), picture, tuple(m["role"] for m in body["messages"]), authorization)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away, as one does after its time-out, is no error of the server's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    owner: JudgeServer
    protocol_version = "HTTP/1.1"
    # Headers and body go out in one packet: a small answer does not wait for the acknowledgement of a smaller one.
    wbufsize = -1
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.owner.connections.add(self.connection)

    def finish(self) -> None:
        self.owner.connections.discard(self.connection)
        with suppress(BrokenPipeError, ConnectionResetError):
            super().finish()

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            self.send(404, {"detail": "Not Found"})
            return
        self.send(200, {"object": "list", "data": [{"id": name} for name in self.owner.models]})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/chat/completions":
            self.send(404, {"detail": "Not Found"})
            return
        with suppress(BrokenPipeError, ConnectionResetError):
            self.owner.answer(self, json.loads(data))

    def send(self, status: int, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> None:
        self.send_bytes(status, json.dumps(body).encode(), headers)

    def send_bytes(
        self,
        status: int,
        data: bytes,
        headers: Mapping[str, str] | None = None,
        only: int | None = None,
        drip: float = 0.0,
    ) -> None:
        """The answer; ``only`` so many bytes of its body and then the connection's end (-1: no answer at all)."""
        if only == -1:
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        for byte in data if drip else ():
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            time.sleep(drip)
        if not drip:
            self.wfile.write(data if only is None else data[:only])
        self.wfile.flush()
        self.close_connection = self.close_connection or only is not None

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests say what they saw."""
