"""Keeps every reply of a judge as a line of JSON, and asks only for what is missing.

A line: {"key", "judge", "model", "question", "question_sha256", "picture_sha256", "texts", "probabilities", "attempts",
"error", "seconds"}. It is written when the reply comes, in one write, so that a process that is killed loses no more
than the replies in flight.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from srum_ds.common.errors import UserError
from srum_ds.common.files import file_bytes
from srum_ds.common.texts import is_number, parse_json
from srum_ds.judges.protocol import Ask, PictureJudge, Reply


@dataclass(frozen=True)
class Record:
    """A reply, and whose reply to what it is. question: the key of the question; the hashes are hexadecimal."""

    judge: str
    model: str
    question: str
    question_sha256: str
    picture_sha256: str
    reply: Reply

    @property
    def key(self) -> str:
        """SHA-256 over judge, model, question and picture: the same asked again has the same."""
        said = [self.judge, self.model, self.question_sha256, self.picture_sha256]
        # A name from a command line may hold a byte that is no UTF-8.
        return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()

    def line(self) -> str:
        """The record as JSON in a line."""
        reply = self.reply
        return json.dumps(
            {
                "key": self.key,
                "judge": self.judge,
                "model": self.model,
                "question": self.question,
                "question_sha256": self.question_sha256,
                "picture_sha256": self.picture_sha256,
                "texts": list(reply.texts),
                "probabilities": list(reply.probabilities),
                "attempts": reply.attempts,
                "error": reply.error,
                "seconds": round(reply.seconds, 3),
            }
        )


def record_of(judge: PictureJudge, ask: Ask, reply: Reply | None = None) -> Record:
    """The record of a judge's reply to an ask; without a reply, one that has none yet."""
    question = ask.question
    picture = hashlib.sha256(ask.picture).hexdigest()
    return Record(judge.kind, judge.model, question.key, question.sha256(), picture, reply or Reply(attempts=0))


def read_store(path: Path) -> Iterator[Record]:
    """The records of a store's file, in the order in which they were kept. A last line without an end is left out.

    Raises UserError naming file and line for what is no record.
    """
    try:
        data = file_bytes(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(data[: _whole(data)].split(b"\n"), 1):
        if line.strip():
            yield _record(line, f"{path}: line {number}")


class ReplyStore:
    """The file of replies at ``path``, held by this process alone until it is closed.

    What the killed process before was writing when it ended is cut off. UserError for a file that is no store, that
    cannot be written, or that another process holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); fix its folder or its permissions"
            ) from error
        try:
            self._lock()
            self._good: dict[str, Reply] = {}
            # What failed since this store was opened: not asked again by it.
            self._failed_now: dict[str, Reply] = {}
            self._load()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> ReplyStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """How many good replies it has."""
        return len(self._good)

    def get(self, key: str) -> Reply | None:
        """The last good reply of a key, or the failure that came since the store was opened; None: it is missing."""
        return self._good.get(key) or self._failed_now.get(key)

    def add(self, record: Record) -> None:
        """Keeps a reply. UserError where it cannot be written (a full disk); the file has whole lines then too."""
        line = record.line().encode() + b"\n"
        start = os.lseek(self._file, 0, os.SEEK_END)
        try:
            written = os.write(self._file, line)
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(self._file, start)
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror}); what it holds is whole: free space and repeat the "
                f"command"
            ) from error
        self._note(record)
        if record.reply.error:
            self._failed_now[record.key] = record.reply

    def close(self) -> None:
        """Lets go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise UserError(
                    f"{self.path}: cannot be locked ({error.strerror}); put it on a file system that has locks"
                ) from error
            raise UserError(f"{self.path}: another process is judging into it; wait for it or stop it") from error

    def _load(self) -> None:
        data = file_bytes(self.path)
        whole = _whole(data)
        if whole < len(data):
            os.ftruncate(self._file, whole)
        for record in read_store(self.path):
            self._note(record)

    def _note(self, record: Record) -> None:
        if not record.reply.error:
            self._good[record.key] = record.reply
            self._failed_now.pop(record.key, None)


def ask_missing(
    judge: PictureJudge,
    asks: Iterable[Ask],
    store: ReplyStore,
    on_reply: Callable[[int, Reply], None] | None = None,
) -> list[Reply]:
    """The replies to all asks, in their order: those that the store has, and the others asked for and kept.

    What failed in an earlier run is asked again, what failed in this one (since the store was opened) is not; what is
    asked twice (the same question about the same picture) is asked once. The asks are drawn one by one.

    on_reply: is told the position and the reply of each ask as soon as it is known, the store's too.

    Raises what the judge raises, and RuntimeError where it leaves an ask without a reply.
    """
    replies: dict[int, Reply] = {}
    # By the key of what is being asked: the positions that wait for it. And by position among those asks: the record.
    waiting: dict[str, list[int]] = {}
    sent: list[Record] = []
    count = 0

    def settle(position: int, reply: Reply) -> None:
        replies[position] = reply
        if on_reply is not None:
            on_reply(position, reply)

    def missing() -> Iterator[Ask]:
        nonlocal count
        for position, ask in enumerate(asks):
            count = position + 1
            record = record_of(judge, ask)
            kept = store.get(record.key)
            if kept is not None:
                settle(position, kept)
            elif record.key in waiting:
                waiting[record.key].append(position)
            else:
                waiting[record.key] = [position]
                sent.append(record)
                yield ask

    for number, reply in judge.ask(missing()):
        asked = sent[number]
        store.add(Record(asked.judge, asked.model, asked.question, asked.question_sha256, asked.picture_sha256, reply))
        for position in waiting.pop(asked.key):
            settle(position, reply)
    if waiting:
        raise RuntimeError(f"judge {judge.kind} gave no reply to {len(waiting)} of {len(sent)} asks")
    return [replies[position] for position in range(count)]


def _whole(data: bytes) -> int:
    """The length of what ends with the end of a line."""
    return data.rfind(b"\n") + 1


def _record(line: bytes, where: str) -> Record:
    try:
        found: Any = parse_json(line)
        reply = Reply(
            tuple(str(text) for text in found["texts"]),
            tuple(_number(value) for value in found["probabilities"]),
            int(_number(found["attempts"])),
            str(found["error"]),
            _number(found["seconds"]),
        )
        named = [str(found[name]) for name in ("judge", "model", "question", "question_sha256", "picture_sha256")]
        return Record(named[0], named[1], named[2], named[3], named[4], reply)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{where}: no reply as `srum-ds eval score` keeps them ({error!r}); remove the line") from error


def _number(value: Any) -> float:
    """A number of a record. ValueError where it is none, not finite or below 0."""
    if not is_number(value) or value < 0:
        raise ValueError(f"{value!r} is no number of 0 or more")
    return float(value)
