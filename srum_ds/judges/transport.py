"""JSON over HTTP to one server: the key, time-outs, what is tried again and after how long, what ends everything.

``http`` asks the questions. A key comes from the environment alone and stands in no message.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt

from srum_ds.common.errors import UserError
from srum_ds.common.texts import parse_json
from srum_ds.judges.chat import BrokenReply, error_text

KEY_VARIABLES = ("SRUM_DS_JUDGE_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the server's key; the first that is set counts."""

FIRST_WAIT = 0.5
LONGEST_WAIT = 30.0
LONGEST_ASKED_WAIT = 600.0
"""Seconds: before the second attempt, between two at most, and at most where the server says how long (Retry-After)."""

_CONNECT_SECONDS = 10.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Unusable(Exception):
    """Why a request failed for now.

    wait: seconds that the server wants to have before it is asked again. gone: nobody listens at the address.
    """

    def __init__(self, why: str, wait: float = 0.0, gone: bool = False) -> None:
        super().__init__(why)
        self.wait = wait
        self.gone = gone


class Refused(Exception):
    """An answer that another try would not change: its HTTP status and what it says."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(f"HTTP {status}: {said}")
        self.status = status
        self.said = said


@dataclass
class Tries:
    """How many requests were made."""

    count: int = 0


class Transport:
    """A server's address, its connections and its key.

    url: of the API, such as http://host:8000/v1. in_flight: most requests at once. timeout: seconds for one request.
    retries: further attempts. UserError for what is no such address.
    """

    def __init__(self, url: str, in_flight: int, timeout: float, retries: int) -> None:
        self.url = checked_url(url)
        self.timeout = timeout
        self.retries = retries
        self.closing = threading.Event()
        self._key_variable, self._key = _key()
        limits = httpx2.Limits(max_connections=in_flight, max_keepalive_connections=in_flight)
        waits = httpx2.Timeout(timeout, connect=min(_CONNECT_SECONDS, timeout), pool=None)
        # A proxy for the world outside does not reach this machine's own servers.
        outside = httpx2.URL(self.url).host not in _LOOPBACK
        self._client = httpx2.Client(timeout=waits, limits=limits, trust_env=outside)

    def __repr__(self) -> str:
        return f"Transport({self.url!r})"

    @property
    def key_said(self) -> str:
        """Where the key comes from, in words that do not give it away."""
        return f"the key in {self._key_variable}" if self._key else f"no key ({' or '.join(KEY_VARIABLES)} is not set)"

    def send(self, method: str, path: str, body: Mapping[str, Any] | None, tries: Tries, read: Any = None) -> Any:
        """What ``read`` makes of the JSON of the answer (None: the JSON itself), tried again as often as allowed.

        Tried again, after a wait that doubles, with a random part, and is no shorter than Retry-After: 408, 425, 429,
        5xx, a connection that breaks, a body that is no JSON or which ``read`` finds broken. ``tries`` is counted up.

        Raises Unusable after the last attempt, and Refused for any other status than 2xx.
        """
        again = Retrying(
            stop=stop_after_attempt(self.retries + 1),
            wait=_wait,
            retry=retry_if_exception_type(Unusable),
            sleep=self._sleep,
            reraise=True,
        )
        return again(self._once, method, path, body, tries, read)

    def close(self) -> None:
        """Ends waits and closes connections."""
        self.closing.set()
        self._client.close()

    def _sleep(self, seconds: float) -> None:
        if seconds > LONGEST_ASKED_WAIT:
            raise Unusable(f"the server wants no request for {seconds:.0f} seconds")
        if self.closing.wait(seconds):
            raise Unusable("the judge was closed")

    def _once(self, method: str, path: str, body: Mapping[str, Any] | None, tries: Tries, read: Any) -> Any:
        if self.closing.is_set():
            raise Unusable("the judge was closed")
        tries.count += 1
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            headers["Content-Type"] = "application/json"
        try:
            status, answer_headers, data = self._receive(method, path, headers, content)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise Unusable(self._without_key(f"no connection ({error or 'timed out'})"), gone=True) from None
        except httpx2.TimeoutException as error:
            raise Unusable(f"no answer within {self.timeout:g} seconds ({type(error).__name__})") from None
        except httpx2.RequestError as error:
            raise Unusable(self._without_key(f"the connection broke ({type(error).__name__}: {error})")) from None
        if status in (408, 425, 429) or status >= 500:
            said = self._without_key(error_text(data))
            # A server that lacks something says 501, and will lack it the next time.
            if status == 501:
                raise Refused(status, said)
            raise Unusable(f"HTTP {status}: {said}", retry_after(answer_headers.get("retry-after", "")))
        if not 200 <= status < 300:
            said = answer_headers.get("location", "") if 300 <= status < 400 else error_text(data)
            raise Refused(status, self._without_key(said))
        try:
            answer = parse_json(data)
            return answer if read is None else read(answer)
        except ValueError:
            raise Unusable(f"the answer is no JSON: {self._without_key(error_text(data))!r}") from None
        except BrokenReply as error:
            raise Unusable(self._without_key(f"the answer is broken: {error}")) from None

    def _receive(
        self, method: str, path: str, headers: Mapping[str, str], content: bytes | None
    ) -> tuple[int, httpx2.Headers, bytes]:
        """Status, headers and body; the whole takes no longer than the time-out, however slowly it drips."""
        end = time.monotonic() + self.timeout
        with self._client.stream(method, self.url + path, headers=dict(headers), content=content) as response:
            parts = []
            for part in response.iter_bytes():
                parts.append(part)
                if time.monotonic() > end:
                    raise httpx2.ReadTimeout("the answer came too slowly")
            return response.status_code, response.headers, b"".join(parts)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def checked_url(url: str) -> str:
    """The address without a slash at its end. UserError for none, another scheme, and for secrets in it."""
    example = "such as http://localhost:8000/v1"
    if not url:
        raise UserError(f"--judge http needs the server's address: --judge-url, {example}")
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise UserError(f"--judge-url: no address ({error}); give one {example}") from None
    if parsed.userinfo or parsed.query:
        # It stands in files and messages.
        raise UserError(
            f"--judge-url: the address of {parsed.host} has a name, a password or a query in it, which would be kept "
            f"with the results; put the key into the environment variable {KEY_VARIABLES[0]}"
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"--judge-url {url}: is no address; give one {example}")
    return str(parsed).rstrip("/").removesuffix("/chat/completions")


def retry_after(value: str, now: datetime | None = None) -> float:
    """Seconds, >= 0, of a Retry-After header: a number or a date (RFC 9110, 10.2.3); 0 for what is neither."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return 0.0
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())


def _wait(state: RetryCallState) -> float:
    """Half to all of 0.5, 1, 2, ... seconds, or a bit more than what the server asked for."""
    error = None if state.outcome is None else state.outcome.exception()
    asked = error.wait if isinstance(error, Unusable) else 0.0
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (state.attempt_number - 1))
    own = longest * random.uniform(0.5, 1.0)
    # Not all at the same moment.
    return max(own, asked + random.uniform(0.0, 0.1) * min(asked, 1.0))


def _key() -> tuple[str, str]:
    for name in KEY_VARIABLES:
        value = os.environ.get(name, "").strip()
        if value:
            if not value.isascii() or not value.isprintable():
                raise UserError(f"the environment variable {name} holds characters that no key has; set it anew")
            return name, value
    return "", ""
