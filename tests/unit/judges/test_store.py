"""Replies are kept as they come and asked for once; recorded ones stand in for a judge."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.judges import Ask, JudgeSettings, Question, Reply, ReplyStore, ask_missing, load_judge, read_store
from srum_ds.judges.store import record_of

GOOD = Question("good", ("Is it good?",))
NICE = Question("nice", ("Is it nice?",))


class Sayer:
    """Replies with the question and the picture, last ask first; ``fails`` are the pictures that it has no reply to."""

    kind = "sayer"
    under_test = False

    def __init__(self, model: str = "one", fails: Iterable[bytes] = ()) -> None:
        self.model = model
        self.fails = set(fails)
        self.asked: list[tuple[str, bytes]] = []

    def ask(self, asks: Iterable[Ask]) -> Iterator[tuple[int, Reply]]:
        for position, ask in reversed(list(enumerate(asks))):
            self.asked.append((ask.question.key, ask.picture))
            if ask.picture in self.fails:
                yield position, Reply(attempts=3, error="it fell silent")
            else:
                yield position, Reply((f"{ask.question.key} {ask.picture.decode()}",), (0.25,), seconds=1.5)

    def close(self) -> None:
        """Nothing is held."""


def four() -> list[Ask]:
    return [Ask(question, picture) for picture in (b"a", b"b") for question in (GOOD, NICE)]


def test_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "replies.jsonl"
    with ReplyStore(path) as store:
        first = ask_missing(Sayer(), four()[:2], store)
        assert [reply.text for reply in first] == ["good a", "nice a"]
    judge = Sayer()
    with ReplyStore(path) as store:
        told: dict[int, Reply] = {}
        found = ask_missing(judge, iter(four()), store, told.__setitem__)
        assert judge.asked == [("nice", b"b"), ("good", b"b")]
    assert [reply.text for reply in found] == ["good a", "nice a", "good b", "nice b"]
    assert [told[n] for n in range(4)] == found and found[:2] == first and found[0].probabilities == (0.25,)
    # another model, another judge, other words: none of them is what was asked
    for other in (Sayer("two"), type("Other", (Sayer,), {"kind": "other"})()):
        with ReplyStore(path) as store:
            ask_missing(other, four(), store)
        assert len(other.asked) == 4
    record = json.loads(path.read_text().splitlines()[0])
    assert (record["judge"], record["model"], record["question"]) == ("sayer", "one", "nice")
    assert record["question_sha256"] == NICE.sha256() and record["seconds"] == 1.5


def test_the_same_asked_twice_is_asked_once(tmp_path: Path) -> None:
    judge = Sayer()
    renamed = Question("other name", GOOD.turns)
    with ReplyStore(tmp_path / "r.jsonl") as store:
        found = ask_missing(judge, [Ask(GOOD, b"a"), Ask(renamed, b"a"), Ask(GOOD, b"a")], store)
    assert len(judge.asked) == 1 and [reply.text for reply in found] == ["good a"] * 3


def test_what_failed_is_asked_again_in_the_next_run_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    judge = Sayer(fails=[b"b"])
    with ReplyStore(path) as store:
        found = ask_missing(judge, four(), store)
        assert [reply.error for reply in found] == ["", "", "it fell silent", "it fell silent"] and len(store) == 2
        assert ask_missing(judge, four(), store) == found and len(judge.asked) == 4
    with ReplyStore(path) as store:
        healed = Sayer()
        assert [reply.text for reply in ask_missing(healed, four(), store)][2:] == ["good b", "nice b"]
        assert len(healed.asked) == 2
    # a failure that comes after a good reply does not hide it
    with ReplyStore(path) as store:
        store.add(record_of(Sayer(), four()[0], Reply(error="late")))
    with ReplyStore(path) as store:
        assert ask_missing(Sayer(fails=[b"a", b"b"]), four(), store)[0].text == "good a"


def test_a_killed_writer_loses_only_its_last_line(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with ReplyStore(path) as store:
        ask_missing(Sayer(), four(), store)
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for left in (1, last // 2, last - 1):
        path.write_bytes(whole[: len(whole) - last + left])
        assert len(list(read_store(path))) == 3
        judge = Sayer()
        with ReplyStore(path) as store:
            assert [reply.error for reply in ask_missing(judge, four(), store)] == [""] * 4
        assert len(judge.asked) == 1 and len(list(read_store(path))) == 4
    path.write_bytes(b"not JSON\n" + whole)
    with pytest.raises(UserError, match="r.jsonl: line 1: no reply"):
        ReplyStore(path)
    # it is not held by the one that could not read it
    path.write_bytes(whole)
    ReplyStore(path).close()


def test_replies_before_the_judges_end_are_kept(tmp_path: Path) -> None:
    class Mortal(Sayer):
        def ask(self, asks: Iterable[Ask]) -> Iterator[tuple[int, Reply]]:
            yield 0, Reply(("lived",)) if next(iter(asks)) else Reply()
            raise UserError("the server is gone")

    path = tmp_path / "r.jsonl"
    with ReplyStore(path) as store, pytest.raises(UserError, match="gone"):
        ask_missing(Mortal(), four(), store)
    assert [record.reply.text for record in read_store(path)] == ["lived"]


def test_a_judge_that_leaves_out_an_ask_is_found_out(tmp_path: Path) -> None:
    class Forgetful(Sayer):
        def ask(self, asks: Iterable[Ask]) -> Iterator[tuple[int, Reply]]:
            yield from list(super().ask(asks))[1:]

    with ReplyStore(tmp_path / "r.jsonl") as store, pytest.raises(RuntimeError, match="no reply to 1 of 4"):
        ask_missing(Forgetful(), four(), store)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    with ReplyStore(tmp_path / "r.jsonl"), pytest.raises(UserError, match="another process is judging"):
        ReplyStore(tmp_path / "r.jsonl")
    with pytest.raises(UserError, match="cannot be written"):
        ReplyStore(tmp_path / "r.jsonl" / "below.jsonl")


def test_recorded_replies_stand_in_for_the_judge(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with ReplyStore(path) as store:
        said = ask_missing(Sayer(fails=[b"b"]), four(), store)
    judge = load_judge("replay", JudgeSettings(replies=(path,)))
    found = dict(judge.ask([*four(), Ask(GOOD, b"c")]))
    assert [found[n] for n in range(4)] == said
    assert found[4].attempts == 0 and "'good' about this picture was recorded in r.jsonl" in found[4].error
    assert judge.kind == "replay" and judge.model.startswith("one (replies ") and not judge.under_test
    with ReplyStore(path) as store:
        ask_missing(Sayer(), four(), store)
    again = load_judge("replay", JudgeSettings(replies=(path,)))
    assert [reply.error for _, reply in again.ask(four())] == [""] * 4 and again.model != judge.model
    with pytest.raises(UserError, match="needs recorded replies"):
        load_judge("replay", JudgeSettings())
    with pytest.raises(UserError, match="nowhere.jsonl: cannot be read"):
        load_judge("replay", JudgeSettings(replies=(tmp_path / "nowhere.jsonl",)))


def test_judges_are_opened_by_name() -> None:
    with pytest.raises(UserError, match="no such judge: use one of http, transformers, self, replay"):
        load_judge("htp", JudgeSettings())
    with pytest.raises(UserError, match="makes str without kind, expected a PictureJudge"):
        load_judge("tests.unit.judges.test_store:no_judge", JudgeSettings())
    with pytest.raises(UserError, match="concurrency 0"):
        load_judge("http", JudgeSettings(concurrency=0))


def no_judge(settings: JudgeSettings) -> str:
    return "nothing"
