"""A server that speaks OpenAI's protocol of chat completions: one request, one reply, and what to make of its errors."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from robustkd.contracts import TargetError
from robustkd.redaction import MASK, redacted

if TYPE_CHECKING:
    import urllib3

_AGAIN = frozenset({408, 429, 500, 502, 503, 504, 529})
"""What a server answers that may answer otherwise the next time."""
_FILTERED = frozenset({"content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation", "moderation_blocked"})
_TOO_LONG = re.compile(r"(?i)context.?(length|size|window)|maximum context|too long|too many tokens")
_LONGEST_WAIT = 60.0
_SHOWN = 200


@dataclass(frozen=True)
class Connection:
    """How a server is asked. It changes no answer, so it is no part of what a result is identified by.

    Attributes:
        key: the name of the environment variable that holds the key; None for a server that asks for none.
        concurrency: how many requests are under way at once.
        timeout: seconds that it may take to answer.
        retries: how often a request is repeated that met a full, failing or silent server.
        wait: seconds before the second repetition, twice as many before each further one; a Retry-After of the server counts instead.
    """

    key: str | None = None
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    wait: float = 0.5


class ChatServer:
    """Asks a server.

    Args:
        base_url: up to and with ``/v1``.
        connection: how it is asked.
    """

    def __init__(self, base_url: str, connection: Connection) -> None:
        self.url, self.connection = f"{base_url.rstrip('/')}/chat/completions", connection

    def __call__(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The reply to a request. One that a filter or the length of the context turned down is its ``error``.

        Raises:
            TargetError: the server cannot be reached, refuses the key or the request, still fails after all repetitions, or answers in
                another format.
        """
        import urllib3

        try:
            response = self._pool.request(
                "POST",
                self.url,
                body=json.dumps(body).encode(),
                headers={"Content-Type": "application/json", **self._authorization()},
                redirect=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            cause = getattr(error, "reason", None) or error
            raise self._failed(f"gives no answer ({type(cause).__name__}: {cause})") from error
        content = _json(response.data)
        if response.status in _AGAIN:
            raise self._failed(f"answers with {response.status} ({_said(content, response.data)})")
        if response.status != 200:
            return self._turned_down(response.status, content, response.data)
        if not isinstance(content, dict) or not isinstance(content.get("choices"), list) or not content["choices"]:
            raise TargetError(
                f"{self.url} answers in another format: {self._shown(response.data)}",
                fix="'base_url' is that of a server with OpenAI's protocol, up to and with /v1",
            )
        return content

    @functools.cached_property
    def _pool(self) -> urllib3.PoolManager:
        import urllib3

        known = self.connection
        retry = urllib3.Retry(
            total=known.retries,
            allowed_methods=None,
            status_forcelist=_AGAIN,
            backoff_factor=known.wait,
            backoff_max=_LONGEST_WAIT,
            raise_on_status=False,
        )
        timeout = urllib3.Timeout(connect=min(10.0, known.timeout), read=known.timeout)
        parts = urlsplit(self.url)
        proxy = None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
        if proxy:
            return urllib3.ProxyManager(proxy, retries=retry, timeout=timeout, maxsize=known.concurrency)
        return urllib3.PoolManager(retries=retry, timeout=timeout, maxsize=known.concurrency)

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {secret}"} if (secret := self._secret) else {}

    @property
    def _secret(self) -> str:
        return os.environ.get(self.connection.key, "").strip() if self.connection.key else ""

    def _turned_down(self, status: int, content: Any, data: bytes) -> dict[str, Any]:
        said = self._shown(_said(content, data))
        error = content.get("error") if isinstance(content, dict) else None
        codes = _codes(error)
        if status in (401, 403) and not codes & _FILTERED:
            name = self.connection.key
            held = f"the variable {name} {'holds another one' if self._secret else 'is not set'}" if name else "none is given"
            raise TargetError(
                f"{self.url} wants a key ({status}: {said}), and {held}",
                fix=f"export {name}=.." if name else "name the environment variable that holds it: key: MY_API_KEY",
            )
        if codes & _FILTERED:
            return {"error": {"kind": "filtered", "said": said}}
        if status == 413 or _TOO_LONG.search(said):
            return {"error": {"kind": "too long", "said": said}}
        raise TargetError(
            f"{self.url} refuses the request ({status}: {said})",
            fix="correct 'base_url', 'model' or 'options' in the campaign file",
        )

    def _failed(self, what: str) -> TargetError:
        return TargetError(
            self._shown(f"{self.url} {what}, after {self.connection.retries} repetitions"),
            fix="see that the server runs and that your limits are not used up; what it has answered is kept: run again",
        )

    def _shown(self, text: str | bytes) -> str:
        """One line of what a server said, without the key."""
        line = " ".join((text.decode(errors="replace") if isinstance(text, bytes) else text).split())
        return redacted(line.replace(self._secret, MASK) if self._secret else line)[: _SHOWN + len(self.url)]


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _said(content: Any, data: bytes) -> str:
    error = content.get("error", content) if isinstance(content, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message) if message else data.decode(errors="replace")


def _codes(error: Any) -> set[str]:
    """All that names an error in a few letters: of OpenAI's, and of Azure's inner one."""
    if not isinstance(error, dict):
        return set()
    found = {value for name in ("code", "type") if isinstance(value := error.get(name), str)}
    return found | _codes(error.get("innererror"))
