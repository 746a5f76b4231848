"""The judge over HTTP, against a real server on loopback that misbehaves."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.client import HTTPConnection
from pathlib import Path

import pytest

from srum_ds.common.errors import UserError
from srum_ds.judges import Ask, JudgeSettings, Question, Reply, ReplyStore, ask_missing, load_judge
from srum_ds.judges import transport as transport_module
from srum_ds.judges.chat import request_body
from srum_ds.judges.transport import retry_after
from tests.support.judge_server import JudgeServer, Seen, Trouble, say_score

SCHEMA = {"type": "object", "properties": {"score": {"type": "integer"}}, "required": ["score"]}
QUESTION = Question("score", ("How good is it?",))
KEY = "sk-secret-of-the-test"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of whoever runs the tests, and short waits."""
    for name in transport_module.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(transport_module, "FIRST_WAIT", 0.01)


def asks(count: int, question: Question = QUESTION) -> list[Ask]:
    return [Ask(question, f"picture {n}".encode(), seed=n) for n in range(count)]


def settings(server: JudgeServer, **changed: object) -> JudgeSettings:
    values: dict[str, object] = {"url": server.url, "model": "stand-in", "timeout": 5.0, "retries": 2} | changed
    return JudgeSettings(**values)  # type: ignore[arg-type]


def replies(server: JudgeServer, asked: list[Ask], **changed: object) -> list[Reply]:
    judge = load_judge("http", settings(server, **changed))
    found = dict(judge.ask(asked))
    judge.close()
    assert sorted(found) == list(range(len(asked)))
    return [found[n] for n in range(len(asked))]


def number(seen: Seen) -> int:
    return int(seen.picture.split()[1])


def test_a_request_is_what_the_protocol_says() -> None:
    first = Question("a", ("Look.",), system="You judge.", max_tokens=33, schema=SCHEMA)
    last = Question("b", ("Look.",), picture_first=False)
    with JudgeServer() as server:
        replies(server, [Ask(first, b"png", seed=5)])
        replies(server, [Ask(last, b"png")])
        one, other = (dict(seen.body) for seen in server.seen)
    assert one["model"] == "stand-in" and one["temperature"] == 0 and one["max_tokens"] == 33 and one["seed"] == 5
    assert one["messages"] == [
        {"role": "system", "content": "You judge."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,cG5n"}},
                {"type": "text", "text": "Look."},
            ],
        },
    ]
    assert one["response_format"]["type"] == "json_schema"
    assert one["response_format"]["json_schema"]["schema"] == SCHEMA
    assert [part["type"] for part in other["messages"][0]["content"]] == ["text", "image_url"]
    assert "response_format" not in other


def test_the_judges_own_replies_stand_between_the_turns() -> None:
    question = Question("talk", ("Describe it.", "Score it.", "Sure?"), schema=SCHEMA)
    with JudgeServer(reply=lambda seen: f"reply {len(seen.texts)}") as server:
        [reply] = replies(server, [Ask(question, b"png")])
        assert reply.texts == ("reply 1", "reply 3", "reply 5") and reply.text == "reply 5" and reply.attempts == 3
        assert server.seen[2].texts == ("Describe it.", "reply 1", "Score it.", "reply 3", "Sure?")
        assert server.seen[2].roles == ("user", "assistant", "user", "assistant", "user")
        assert ["response_format" in seen.body for seen in server.seen] == [False, False, True]


def test_answers_are_read_from_the_first_tokens_probabilities() -> None:
    question = Question("dog", ("Is there a dog?",), answers=("yes", "no"))
    said = {"Yes": 0.5, " yes": 0.1, "YES": 0.05, "No": 0.2, "The": 0.1, "yesterday": 0.01}
    with JudgeServer(reply=lambda seen: said) as server:
        [reply] = replies(server, [Ask(question, b"png")])
        body = server.seen[0].body
    assert reply.probabilities == pytest.approx((0.65, 0.2)) and reply.texts == ()
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)
    with JudgeServer(reply=lambda seen: {"The": 0.9, "A": 0.1}) as server:
        [reply] = replies(server, [Ask(question, b"png")])
    assert reply.probabilities == () and "none of yes, no is among the 2 likeliest" in reply.error
    with JudgeServer(reply=lambda seen: "Yes") as server:
        [reply] = replies(server, [Ask(question, b"png")])
    assert "no logprobs" in reply.error


TROUBLES = [
    Trouble("status", 429, headers={"Retry-After": "0.05"}),
    Trouble("status", 500),
    Trouble("status", 503),
    Trouble("status", 408),
    Trouble("drop"),
    Trouble("half"),
    Trouble("truncated"),
    Trouble("no_choices"),
    Trouble("no_text"),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda t: f"{t.kind}-{t.status}" if t.kind == "status" else t.kind)
def test_what_may_pass_is_tried_again(trouble: Trouble) -> None:
    with JudgeServer(trouble=lambda seen, before: trouble if before < 2 else None) as server:
        [reply] = replies(server, asks(1))
        assert reply.error == "" and reply.attempts == 3 and reply.text == say_score(server.seen[0])
    with JudgeServer(trouble=lambda seen, before: trouble) as server:
        [reply] = replies(server, asks(1))
        assert reply.attempts == 3 == len(server.seen) and reply.error.startswith("after 3 requests: ")
        assert reply.texts == () and reply.text == ""


def test_a_slow_server_is_given_up_after_the_timeout() -> None:
    for trouble in (Trouble("status", seconds=2.0), Trouble("drip", seconds=0.02)):
        with JudgeServer(trouble=lambda seen, before, t=trouble: t) as server:  # type: ignore[misc]
            start = time.monotonic()
            [reply] = replies(server, asks(1), timeout=0.2, retries=1)
            assert time.monotonic() - start < 3.5
        assert "no answer within 0.2 seconds" in reply.error and reply.attempts == 2


def test_retry_after_is_obeyed() -> None:
    trouble = Trouble("status", 429, headers={"Retry-After": "0.4"})
    with JudgeServer(trouble=lambda seen, before: None if before else trouble) as server:
        start = time.monotonic()
        [reply] = replies(server, asks(1))
        assert reply.error == "" and 0.4 <= time.monotonic() - start < 20
    with JudgeServer(trouble=lambda seen, before: Trouble("status", 429, headers={"Retry-After": "7200"})) as server:
        [reply] = replies(server, asks(1))
        assert "no request for 7200 seconds" in reply.error and reply.attempts == 1
    now = datetime(2026, 11, 26, 12, 0, 0, tzinfo=UTC)
    assert retry_after("Thu, 26 Nov 2026 12:00:30 GMT", now) == 30
    assert retry_after("Thu, 26 Nov 2026 11:00:00 GMT", now) == 0
    assert (retry_after("soon", now), retry_after("", now), retry_after("-3", now)) == (0, 0, 0)


def test_one_bad_picture_fails_alone() -> None:
    def refuse(seen: Seen, before: int) -> Trouble | None:
        return Trouble("status", 400, "cannot decode the image") if number(seen) == 3 else None

    with JudgeServer(trouble=refuse) as server:
        found = replies(server, asks(6))
        assert [reply.error for reply in found] == ["", "", "", "HTTP 400: cannot decode the image", "", ""]
        assert found[3].attempts == 1 and len(server.seen) == 6


def test_a_picture_that_a_filter_forbids_fails_alone() -> None:
    def refuse(seen: Seen, before: int) -> Trouble | None:
        return Trouble("status", 403, "flagged") if number(seen) == 0 else None

    with JudgeServer(trouble=refuse) as server:
        assert [bool(reply.error) for reply in replies(server, asks(4))] == [True, False, False, False]


def test_a_server_without_schemas_is_asked_without(capsys: pytest.CaptureFixture[str]) -> None:
    with JudgeServer(takes_schema=False) as server:
        found = replies(server, asks(8, Question("score", ("How good?",), schema=SCHEMA)), concurrency=1)
        assert [(reply.error, reply.attempts) for reply in found] == [("", 2)] + [("", 1)] * 7
        assert ["response_format" in seen.body for seen in server.seen] == [True] + [False] * 8
    assert capsys.readouterr().err.count("asked for without a schema") == 1


def test_a_reply_that_was_cut_off_is_kept_unless_it_had_to_be_json() -> None:
    prose = Question("a", ("Describe.",), max_tokens=3)
    schema = Question("b", ("Score.",), max_tokens=3, schema=SCHEMA)
    with JudgeServer(reply=lambda seen: "one two three four") as server:
        kept, lost = replies(server, [Ask(prose, b"png"), Ask(schema, b"png")])
    assert kept == Reply(("one two three",)) and lost.error.startswith("the reply was cut off at 3 tokens")
    with JudgeServer(reply=lambda seen: '{"score": 1}') as server:
        assert replies(server, [Ask(schema, b"png")]) == [Reply(('{"score": 1}',))]


def test_what_no_ask_can_succeed_with_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with JudgeServer(key=KEY) as server:
        with pytest.raises(UserError, match="no key .SRUM_DS_JUDGE_KEY or OPENAI_API_KEY is not set"):
            replies(server, asks(20))
        assert len(server.seen) <= 8
        monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-and-private")
        with pytest.raises(UserError, match="the key in OPENAI_API_KEY") as refused:
            replies(server, asks(1))
        # the server's message quotes the key
        assert "sk-wrong" not in str(refused.value) and "***" in str(refused.value)
        monkeypatch.setenv("SRUM_DS_JUDGE_KEY", KEY)
        assert replies(server, asks(1))[0].error == ""
        with pytest.raises(UserError, match="`other` does not exist.*--judge-model .other;"):
            replies(server, asks(3), model="other")
        with pytest.raises(UserError, match="Not Found.*--judge-url"):
            replies(server, asks(3), url=server.url.removesuffix("/v1"))
        gone = server.url
    with pytest.raises(UserError, match="no connection.*start the server") as nobody:
        replies(server, asks(1), url=gone, retries=1)
    assert gone in str(nobody.value)
    with JudgeServer(trouble=lambda seen, before: Trouble("status", 403, "no")) as server:
        with pytest.raises(UserError, match="refuses the key in SRUM_DS_JUDGE_KEY"):
            replies(server, asks(20))


def test_the_servers_only_model_needs_no_name() -> None:
    with JudgeServer(models=["Qwen/Qwen2.5-VL-72B-Instruct"]) as server:
        judge = load_judge("http", settings(server, model=""))
        assert judge.model == "Qwen/Qwen2.5-VL-72B-Instruct" and (judge.kind, judge.under_test) == ("http", False)
        assert [reply.error for _, reply in judge.ask(asks(2))] == ["", ""]
    # nobody is asked before the name is needed
    assert load_judge("http", JudgeSettings(url="http://127.0.0.1:9/v1")).kind == "http"
    with JudgeServer(models=["a", "b"]) as server:
        with pytest.raises(UserError, match="it has a, b; choose by --judge-model"):
            replies(server, asks(1), model="")


def test_an_address_holds_no_secrets() -> None:
    for url in ("http://me:pass@host/v1", "https://host/v1?api-key=pass"):
        with pytest.raises(UserError, match="SRUM_DS_JUDGE_KEY") as refused:
            load_judge("http", JudgeSettings(url=url, model="m"))
        assert "pass@" not in str(refused.value) and "=pass" not in str(refused.value)
    for url in ("", "host:8000", "ftp://host"):
        with pytest.raises(UserError, match="such as http://localhost:8000/v1"):
            load_judge("http", JudgeSettings(url=url, model="m"))


def test_the_key_stands_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SRUM_DS_JUDGE_KEY", KEY)

    def quote(seen: Seen, before: int) -> Trouble | None:
        return Trouble("status", 500, f"bad key {seen.authorization}") if number(seen) % 2 else None

    with JudgeServer(key=KEY, trouble=quote) as server, ReplyStore(tmp_path / "replies.jsonl") as store:
        judge = load_judge("http", settings(server, retries=0))
        found = ask_missing(judge, asks(4), store)
        assert "bad key Bearer ***" in found[1].error
        assert KEY not in repr(judge) + repr(vars(judge)) + repr(found)
    assert KEY not in (tmp_path / "replies.jsonl").read_text()


def bare_seconds(server: JudgeServer, bodies: list[bytes]) -> float:
    """How long eight threads take that do nothing but post, each on a connection of its own that is open already."""
    address = server.url.removeprefix("http://").removesuffix("/v1")

    def post(own: HTTPConnection, share: list[bytes]) -> None:
        for body in share:
            own.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            own.getresponse().read()

    connections = [HTTPConnection(address) for _ in range(8)]
    for connection in connections:
        connection.connect()
    with ThreadPoolExecutor(8) as pool:
        start = time.monotonic()
        list(pool.map(post, connections, [bodies[k::8] for k in range(8)]))
        return time.monotonic() - start


def test_eight_requests_in_flight_keep_the_server_busy() -> None:
    # 64 requests at a server that works at 8 at once. It cannot need less than an eighth of its own work, nor than
    # threads that only post: those too wait for a core where other processes compute beside them.
    with JudgeServer(slots=8) as server:
        judge = load_judge("http", settings(server))
        # the connections of the first requests are not what is measured
        assert len(dict(judge.ask(asks(8)))) == 8
        ratios = []
        for attempt, server.seconds in enumerate((0.05, 0.05, 0.05, 0.1, 0.1)):
            drawn = [Ask(QUESTION, b"picture %d of %d" % (n, attempt) + bytes(20_000)) for n in range(64)]
            bare = bare_seconds(server, [json.dumps(request_body(ask, "stand-in")).encode() for ask in drawn])
            start = time.monotonic()
            assert all(not reply.error for _, reply in judge.ask(iter(drawn)))
            ratios.append((time.monotonic() - start) / max(bare, 64 * server.seconds / 8))
            if ratios[-1] <= 1.2:
                break
        assert server.most_at_once == 8
    assert min(ratios) <= 1.2, f"{min(ratios):.2f} times the ideal"


def test_an_answered_ask_counts_as_in_flight_until_its_reply_is_taken_up() -> None:
    # Whoever keeps the replies loses no more asks than that when it is killed, however slowly it keeps them.
    with JudgeServer() as server:
        given = load_judge("http", settings(server, concurrency=3)).ask(asks(20))
        for taken in range(5):
            next(given)
            time.sleep(0.1)
            assert len(server.seen) <= taken + 3
        assert len(list(given)) == 15 and len(server.seen) == 20


def test_pictures_are_drawn_as_they_are_needed() -> None:
    drawn: list[int] = []

    def pictures() -> Iterator[Ask]:
        for n, ask in enumerate(asks(100)):
            drawn.append(n)
            yield ask

    with JudgeServer() as server:
        judge = load_judge("http", settings(server, concurrency=2))
        replied = judge.ask(pictures())
        for _ in range(5):
            next(replied)
        assert len(drawn) <= 5 + 4
        replied.close()  # type: ignore[attr-defined]
        judge.close()


def test_an_error_of_whoever_draws_the_pictures_is_theirs() -> None:
    def pictures() -> Iterator[Ask]:
        yield asks(1)[0]
        raise UserError("images/7.png: no such image")

    with JudgeServer() as server, pytest.raises(UserError, match="7.png"):
        list(load_judge("http", settings(server)).ask(pictures()))


def test_a_terrible_server_ends_with_every_failure_counted_and_a_second_run_asks_for_those(tmp_path: Path) -> None:
    healed = False
    lasting = {3: Trouble("status", 500), 7: Trouble("drop"), 12: Trouble("truncated"), 20: Trouble("half")}
    passing = [*TROUBLES, Trouble("status", 200, seconds=0.0)]

    def trouble(seen: Seen, before: int) -> Trouble | None:
        n = number(seen)
        if n in lasting and not healed:
            return lasting[n]
        # of the others every third stumbles once
        return passing[n % len(TROUBLES)] if n % 3 == 0 and before == 0 and n not in lasting else None

    path = tmp_path / "replies.jsonl"
    with JudgeServer(trouble=trouble) as server:
        with ReplyStore(path) as store:
            told: list[int] = []
            first = ask_missing(
                load_judge("http", settings(server)), asks(30), store, lambda position, reply: told.append(position)
            )
            assert [n for n, reply in enumerate(first) if reply.error] == sorted(lasting) and len(store) == 26
            assert sorted(told) == list(range(30))
            # the same run does not ask again for what failed
            seen = len(server.seen)
            assert ask_missing(load_judge("http", settings(server)), asks(30), store) == first
            assert len(server.seen) == seen
        healed = True
        with ReplyStore(path) as store:
            second = ask_missing(load_judge("http", settings(server)), asks(30), store)
        assert sorted(number(seen) for seen in server.seen[seen:]) == sorted(lasting)
        assert all(not reply.error for reply in second)
        assert [a for n, a in enumerate(first) if n not in lasting] == [
            a for n, a in enumerate(second) if n not in lasting
        ]
