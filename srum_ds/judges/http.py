"""A judge behind an OpenAI-compatible server (vLLM, SGLang, a provider): ``--judge http``."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.judges.chat import (
    NoReply,
    Said,
    read_probabilities,
    read_text,
    refuses_schema,
    request_body,
    schema_error,
)
from srum_ds.judges.protocol import Ask, JudgeSettings, Reply
from srum_ds.judges.transport import Refused, Transport, Tries, Unusable

_FORBIDDEN = 3
"""Answers 403 before any reply after which it is the key that is refused, and not a picture by some filter."""


class HttpJudge:
    """Asks over HTTP with ``settings.concurrency`` requests in flight.

    Reads url, model, concurrency, timeout and retries of the settings. The model's name may be empty where the server
    has one alone. UserError for what is no address.
    """

    kind = "http"
    under_test = False

    def __init__(self, settings: JudgeSettings) -> None:
        self.concurrency = settings.concurrency
        self._named = settings.model
        self.transport = Transport(settings.url, settings.concurrency, settings.timeout, settings.retries)
        self._lock = threading.Lock()
        self._with_schema = True
        self._replied = False
        self._forbidden = 0

    def __repr__(self) -> str:
        return f"HttpJudge({self.transport.url!r}, {self._named!r})"

    @cached_property
    def model(self) -> str:
        """The name that the server knows. UserError where none was given and it has several, or cannot be asked."""
        if self._named:
            return self._named
        try:
            answer = self.transport.send("GET", "/models", None, Tries())
        except Unusable as error:
            raise self._unreachable(error) from None
        except Refused as error:
            raise self._refused_by_all(error) from None
        data = answer.get("data") if isinstance(answer, dict) else None
        names = [str(entry["id"]) for entry in data or () if isinstance(entry, dict) and entry.get("id")]
        if len(names) != 1:
            known = f"it has {', '.join(names[:20])}" if names else "it names none"
            raise UserError(f"{self.transport.url}: which model judges is not clear, {known}; choose by --judge-model")
        return names[0]

    def ask(self, asks: Iterable[Ask]) -> Iterator[tuple[int, Reply]]:
        """See ``PictureJudge``. The asks are drawn, two for each request in flight, by whoever iterates.

        An ask is sent only when all but ``concurrency - 1`` of those before it have been answered and taken up.
        """
        # Asked for here, once, rather than by every thread.
        assert self.model
        waiting: queue.SimpleQueue[tuple[int, Ask] | None] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Reply | BaseException]] = queue.SimpleQueue()
        ended = threading.Event()

        def work() -> None:
            while (item := waiting.get()) is not None and not ended.is_set():
                position, ask = item
                try:
                    done.put((position, self._reply(ask)))
                except BaseException as error:
                    # Raised again by whoever iterates.
                    done.put((position, error))

        # Daemons: a process that is interrupted does not wait for a server.
        threads = [threading.Thread(target=work, name=f"judge-{n}", daemon=True) for n in range(self.concurrency)]
        for thread in threads:
            thread.start()
        numbered = enumerate(asks)
        # Drawn, so that a thread that is free need not wait for them, and not yet given to one.
        ahead: deque[tuple[int, Ask]] = deque()
        open_asks = 0
        try:
            while True:
                while ahead and open_asks < self.concurrency:
                    waiting.put(ahead.popleft())
                    open_asks += 1
                wanted = open_asks < self.concurrency or (done.empty() and len(ahead) < self.concurrency)
                if wanted and (drawn := next(numbered, None)) is not None:
                    ahead.append(drawn)
                    continue
                if not open_asks:
                    return
                position, outcome = done.get()
                if isinstance(outcome, BaseException):
                    raise outcome
                yield position, outcome
                # Only now has whoever iterates kept the reply: a process that is killed loses no more than this many.
                open_asks -= 1
        finally:
            ended.set()
            for _ in threads:
                waiting.put(None)

    def close(self) -> None:
        """Ends waits and closes connections."""
        self.transport.close()

    # ---- in a thread

    def _reply(self, ask: Ask) -> Reply:
        start = time.monotonic()
        tries = Tries()
        texts: list[str] = []
        probabilities: tuple[float, ...] = ()
        problem = ""
        try:
            if ask.question.answers:
                answers = ask.question.answers
                probabilities = self._send(ask, (), tries, lambda answer: read_probabilities(answer, answers))
            for _ in () if ask.question.answers else ask.question.turns:
                said: Said = self._send(ask, texts, tries, read_text)
                texts.append(said.text)
                problem = schema_error(ask.question, said)
        except NoReply as error:
            problem = str(error)
        except Unusable as error:
            if error.gone:
                raise self._unreachable(error) from None
            problem = f"after {tries.count} requests: {error}"
        except Refused as error:
            if self._concerns_all(error):
                raise self._refused_by_all(error) from None
            problem = str(error)
        seconds = time.monotonic() - start
        if problem:
            return Reply(attempts=tries.count, error=problem, seconds=seconds)
        self._replied = True
        return Reply(tuple(texts), probabilities, tries.count, seconds=seconds)

    def _send(self, ask: Ask, replies: Any, tries: Tries, read: Any) -> Any:
        with_schema = self._with_schema
        body = request_body(ask, self.model, replies, with_schema)
        try:
            return self.transport.send("POST", "/chat/completions", body, tries, read)
        except Refused as error:
            if not refuses_schema(body, error.status, error.said):
                raise
            self._give_up_schema(error)
        body.pop("response_format")
        return self.transport.send("POST", "/chat/completions", body, tries, read)

    def _give_up_schema(self, error: Refused) -> None:
        with self._lock:
            told, self._with_schema = not self._with_schema, False
        if not told:
            print(
                f"{self.transport.url} takes no response_format ({error.said}): replies are asked for without a schema",
                file=sys.stderr,
            )

    def _concerns_all(self, error: Refused) -> bool:
        """Whether no ask can succeed, rather than this one alone."""
        if error.status == 401:
            return True
        if self._replied:
            return False
        if error.status == 403:
            with self._lock:
                self._forbidden += 1
                return self._forbidden >= _FORBIDDEN
        lowered = error.said.casefold()
        no_model = error.status in (400, 422) and "model" in lowered and ("exist" in lowered or "not found" in lowered)
        return no_model or error.status in (404, 405) or 300 <= error.status < 400

    def _unreachable(self, error: Unusable) -> UserError:
        return UserError(
            f"{self.transport.url}: {error}; start the server or correct --judge-url. Replies that came are kept: "
            f"repeat the command to go on"
        )

    def _refused_by_all(self, error: Refused) -> UserError:
        url = self.transport.url
        if error.status in (401, 403):
            return UserError(f"{url} refuses {self.transport.key_said} ({error}); set the environment variable anew")
        if 300 <= error.status < 400:
            return UserError(f"{url} sends elsewhere ({error}); give that address as --judge-url")
        return UserError(
            f"{url}/chat/completions: {error}; correct --judge-url (it usually ends with /v1), or --judge-model "
            f"({self._named or 'not given'}; {url}/models lists what the server knows)"
        )


def http_judge(settings: JudgeSettings) -> HttpJudge:
    """The entry of the registry."""
    return HttpJudge(settings)
