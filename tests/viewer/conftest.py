"""Campaigns to look at, and a real server on this machine that shows them."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import pytest
import uvicorn

import robustkd
from robustkd.campaigns.store.identity import digest
from robustkd.viewer.runs import Runs
from robustkd.viewer.server import application, listening
from robustkd.viewer.site import Site
from support.campaigns import tiny_campaign
from support.toy_prompts import CUPBOARD, SQUARES, registered

IMAGES = tiny_campaign(
    "pictures",
    train=300,
    defenses={
        "plain": "{kind: standard, model: tiny-cnn, epochs: 6}",
        "robust": "{kind: pgd-at, model: tiny-cnn, epochs: 6, inner: {steps: 2}}",
    },
    attacks={"fgsm": "{kind: fgsm}", "pgd": "{kind: pgd, steps: 3}", "far": "{kind: cw-l2, steps: 10, binary_steps: 3}"},
)
TEXTS = re.sub(r"  (open|careful): .*\n", "", CUPBOARD).split("gates:")[0]


class Page(HTMLParser):
    """A page's words, links, tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags, self.links, self.pictures, self.handlers = "", [], {}, [], []
        self.rel: dict[str, str] = {}
        self._link: str | None = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        self.tags.append(tag)
        self.handlers += [name for name in told if name.startswith("on")]
        if tag == "img":
            self.pictures.append(told["src"])
        if tag == "a":
            self._link = told["href"]
            self.links[told["href"]] = ""
            if told.get("rel"):
                self.rel[told["rel"]] = told["href"]

    def handle_endtag(self, tag):
        if tag not in ("b", "small", "ins", "del", "a", "span"):
            self.text += " "
        if tag == "a":
            self._link = None

    def handle_data(self, data):
        self.text += data
        if self._link is not None:
            self.links[self._link] += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode("utf-8")

    @property
    def page(self) -> Page:
        assert self.status == 200, self.text
        return Page(self.text)


Get = Callable[..., Answer]


@contextmanager
def served(folder: Path, **options: object) -> Iterator[Get]:
    """While it lasts, the viewer shows ``folder``: ``get("campaign", run="x")`` or ``get("/whatever?address")``."""
    listener = listening(0)
    site = Site(Runs(folder), **options)  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(application(site), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)

    def get(path: str, host: str | None = None, **query: object) -> Answer:
        address = path if path.startswith("/") else f"/{path}?{urlencode(query)}"
        connection = http.client.HTTPConnection("127.0.0.1", listener.getsockname()[1], timeout=60)
        connection.request("GET", address, headers={"Host": host} if host else {})
        reply = connection.getresponse()
        answer = Answer(reply.status, {key.lower(): value for key, value in reply.headers.items()}, reply.read())
        connection.close()
        return answer

    get.place = f"127.0.0.1:{listener.getsockname()[1]}"  # type: ignore[attr-defined]
    try:
        yield get
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def rewritten(cell, name, content):
    """Another file in a cell, with checksums that are right."""
    (cell / name).write_bytes(content)
    note = json.loads((cell / "meta.json").read_text())
    note["files"][name] = sha256(content).hexdigest()
    note.pop("seal")
    (cell / "meta.json").write_text(json.dumps(note | {"seal": digest(note)}))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three campaigns that were run: of images, of a language model, and of a model that draws."""
    runs = tmp_path_factory.mktemp("finished") / "runs"
    robustkd.run(IMAGES, runs / "pictures", workers=0, device="cpu", track=False)
    with registered(tmp_path_factory.mktemp("site")):
        for text, name in ((TEXTS, "cupboards"), (SQUARES, "squares")):
            robustkd.run(text, runs / name, workers=0, device="cpu", track=False)
    return runs


@pytest.fixture
def runs(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished campaigns that a test may change."""
    return shutil.copytree(finished, tmp_path / "runs")


@pytest.fixture(scope="session")
def get(finished: Path) -> Iterator[Get]:
    """Asks a viewer of the finished campaigns."""
    with served(finished) as ask:
        yield ask
