"""A server of OpenAI's protocol in this process: a model answers behind it, it counts what it is asked, and it fails as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from robustkd.contracts import CutOff, Request, Unanswered
from robustkd.targets import CausalLMTarget

Answer = Callable[[dict[str, Any]], str]
Fault = Callable[["Handler", dict[str, Any]], bool]
"""Answers a request itself and returns True, or returns False."""


@dataclass
class Served:
    """What a server was asked.

    Attributes:
        asked: how often each request was answered, by its body.
        keys: the authorizations that it was sent.
        fault: what goes wrong.
    """

    url: str
    answer: Answer
    fault: Fault = lambda handler, body: False
    asked: Counter[str] = field(default_factory=Counter)
    received: int = 0
    keys: set[str | None] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Handler(BaseHTTPRequestHandler):
    served: Served

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.served.lock:
            self.served.received += 1
            self.served.keys.add(self.headers["Authorization"])
        if self.path != "/v1/chat/completions":
            return self.reply(404, {"error": {"message": "not found"}})
        if self.served.fault(self, body):
            return None
        with self.served.lock:
            text = self.served.answer(body)
            if isinstance(text, Unanswered):  # of the local model
                return self.reply(400, {"error": {"message": "This model's maximum context length is 64 tokens."}})
            self.served.asked[json.dumps(body, sort_keys=True)] += 1
        return self.complete(text)

    def complete(self, text: str, reason: str | None = None, **message: Any) -> None:
        reason = reason or ("length" if isinstance(text, CutOff) else "stop")
        choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": reason}
        usage = {"prompt_tokens": 10, "completion_tokens": len(text.split())}
        self.reply(200, {"object": "chat.completion", "model": "toy", "choices": [choice], "usage": usage})

    def reply(self, status: int, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: Any) -> None:
        pass


class _Quiet(ThreadingHTTPServer):
    def handle_error(self, *args: Any) -> None:  # whoever asked did not wait for the answer
        pass


@contextmanager
def serving(answer: Answer, fault: Fault | None = None) -> Iterator[Served]:
    """While it lasts, a server on loopback."""
    handler = type("Handling", (Handler,), {})
    server = _Quiet(("127.0.0.1", 0), handler)
    served = handler.served = Served(f"http://127.0.0.1:{server.server_port}/v1", answer)
    if fault:
        served.fault = fault
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


def of_model(target: CausalLMTarget) -> Answer:
    """The answers of a local model, by its own chat template."""

    def answer(body: dict[str, Any]) -> str:
        messages = body["messages"]
        begun = messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""
        (prompt,) = [message["content"] for message in messages if message["role"] == "user"]
        (text,) = target.respond([Request(prompt, begun)])
        return text

    return answer


def nth(number: int, fault: Fault) -> Fault:
    """A fault at the request of this number, and at no other."""
    seen = iter(range(10**9))
    return lambda handler, body: next(seen) == number and fault(handler, body)


def status(code: int, content: Any = None, **headers: str) -> Fault:
    """Answers with an error."""

    def fault(handler: Handler, body: dict[str, Any]) -> bool:
        handler.reply(code, {"error": {"message": "no"}} if content is None else content, **headers)
        return True

    return fault


def slow(seconds: float) -> Fault:
    """Says nothing for a while."""

    def fault(handler: Handler, body: dict[str, Any]) -> bool:
        time.sleep(seconds)
        return False

    return fault


def cut(handler: Handler, body: dict[str, Any]) -> bool:
    """Ends the connection within the answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.connection.close()
    return True


def filtered(handler: Handler, body: dict[str, Any]) -> bool:
    """Holds the answer back."""
    handler.complete("", "content_filter")
    return True


def table(results: dict[str, Any], defense: str) -> dict[str, tuple[Any, ...]]:
    """Of one defense in ``results.json``, what a served model and the same one here must have alike, by attack."""
    shown = ("status", "clean_accuracy", "robust_accuracy", "unjudged", "attack_success_rate", "forward_passes")
    return {cell["attack"]: tuple(cell[key] for key in shown) for cell in results["cells"] if cell["defense"] == defense}
