"""Recorded replies in a judge's place: ``--judge replay``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from srum_ds.common.errors import UserError
from srum_ds.judges.protocol import Ask, JudgeSettings, Reply
from srum_ds.judges.store import Record, read_store


class ReplayJudge:
    """Gives the replies that files of a ``ReplyStore`` hold, by the hashes of question and picture.

    Of several replies to the same, the last good one counts. Its model is the one that replied, and a hash of what it
    replied.
    """

    kind = "replay"

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = tuple(files)
        self._replies: dict[tuple[str, str], Reply] = {}
        models: set[str] = set()
        judges: set[str] = set()
        digest = hashlib.sha256()
        for path in self.files:
            for record in read_store(path):
                self._note(record)
                models.add(record.model)
                judges.add(record.judge)
        for asked, reply in sorted(self._replies.items(), key=lambda item: item[0]):
            digest.update(repr((asked, reply.texts, reply.probabilities, reply.error)).encode())
        self.model = f"{' and '.join(sorted(models)) or 'nobody'} (replies {digest.hexdigest()[:12]})"
        self.under_test = "self" in judges

    def ask(self, asks: Iterable[Ask]) -> Iterator[tuple[int, Reply]]:
        """See ``PictureJudge``. What was not recorded has an error and 0 attempts."""
        for position, ask in enumerate(asks):
            asked = (ask.question.sha256(), hashlib.sha256(ask.picture).hexdigest())
            yield position, self._replies.get(asked) or _missing(ask, self.files)

    def close(self) -> None:
        """Nothing is held."""

    def _note(self, record: Record) -> None:
        asked = (record.question_sha256, record.picture_sha256)
        known = self._replies.get(asked)
        if known is None or known.error or not record.reply.error:
            self._replies[asked] = record.reply


def _missing(ask: Ask, files: tuple[Path, ...]) -> Reply:
    names = ", ".join(path.name for path in files)
    return Reply(attempts=0, error=f"no reply to {ask.question.key!r} about this picture was recorded in {names}")


def replay_judge(settings: JudgeSettings) -> ReplayJudge:
    """The entry of the registry. UserError without files, and for files that are no records."""
    if not settings.replies:
        raise UserError("--judge replay needs recorded replies: --replies FILE (replies.jsonl of a scored folder)")
    return ReplayJudge(settings.replies)
