"""The bodies of an OpenAI-compatible chat: what is sent to ``/chat/completions``, and what is read from the answer.

Pure functions; ``http`` sends. Facts of the protocol: the API reference of OpenAI, and the pages on structured outputs
of vLLM (https://docs.vllm.ai/en/latest/features/structured_outputs.html) and SGLang.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from srum_ds.common.texts import parse_json
from srum_ds.judges.protocol import Ask, Question
from srum_ds.judges.words import answer_probabilities

TOP_LOGPROBS = 20
"""The likeliest first tokens that are asked for: the most that OpenAI gives, and vLLM unless it is told otherwise."""

# What servers call it when they refuse `response_format`.
_SCHEMA_WORDS = ("response_format", "json_schema", "structured", "guided", "grammar")


class BrokenReply(Exception):
    """An answer of the server that is not what the protocol says; another try may bring a whole one."""


class NoReply(Exception):
    """An answer that is whole and holds no reply; another try would bring the same."""


def messages(ask: Ask, replies: Sequence[str]) -> list[dict[str, Any]]:
    """The conversation up to the turn that follows ``replies``, the picture as a data URL in the first turn."""
    question = ask.question
    url = "data:image/png;base64," + base64.b64encode(ask.picture).decode()
    picture = {"type": "image_url", "image_url": {"url": url}}
    text = {"type": "text", "text": question.turns[0]}
    said: list[dict[str, Any]] = [{"role": "system", "content": question.system}] if question.system else []
    said.append({"role": "user", "content": [picture, text] if question.picture_first else [text, picture]})
    for reply, turn in zip(replies, question.turns[1:], strict=False):
        said += [{"role": "assistant", "content": reply}, {"role": "user", "content": turn}]
    return said


def request_body(ask: Ask, model: str, replies: Sequence[str] = (), with_schema: bool = True) -> dict[str, Any]:
    """The JSON of one request: the turn that follows ``replies``.

    Greedy and seeded. A question with ``answers`` asks for one token and the likeliest in its place. The schema goes
    with the last turn alone.
    """
    question = ask.question
    body: dict[str, Any] = {
        "model": model,
        "messages": messages(ask, replies),
        "temperature": 0,
        "max_tokens": 1 if question.answers else question.max_tokens,
        "seed": ask.seed,
    }
    if question.answers:
        body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
    elif question.schema is not None and with_schema and len(replies) == len(question.turns) - 1:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "reply", "schema": dict(question.schema), "strict": True},
        }
    return body


def refuses_schema(body: Mapping[str, Any], status: int, said: str) -> bool:
    """Whether an answer says that the server cannot hold a reply to a schema, rather than anything else."""
    lowered = said.casefold()
    return "response_format" in body and status in (400, 422, 501) and any(word in lowered for word in _SCHEMA_WORDS)


@dataclass(frozen=True)
class Said:
    """One reply. cut: it ended at ``max_tokens``."""

    text: str
    cut: bool


def read_text(answer: Any) -> Said:
    """The reply in an answer's JSON. BrokenReply where there is none, NoReply where the judge refused to give one."""
    choice = _choice(answer)
    message = choice.get("message")
    if not isinstance(message, Mapping):
        raise BrokenReply("its choice has no message")
    text = message.get("content")
    if isinstance(text, list):
        # Some servers give the parts of a content rather than its text.
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, Mapping))
    if not isinstance(text, str):
        refusal = message.get("refusal")
        if refusal or choice.get("finish_reason") == "content_filter":
            raise NoReply(f"the judge refused to answer: {refusal or 'content_filter'}")
        raise BrokenReply("its message has no text")
    return Said(text, choice.get("finish_reason") == "length")


def read_probabilities(answer: Any, answers: Sequence[str]) -> tuple[float, ...]:
    """The probability of each answer as the first token of the reply, spellings added up.

    NoReply where none of them is among the likeliest tokens, and where the server gives no log-probabilities.
    """
    choice = _choice(answer)
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, Mapping) else None
    if not isinstance(content, list) or not content or not isinstance(content[0], Mapping):
        raise NoReply("the server gives no logprobs, which a question with answers needs (vLLM: --max-logprobs 20)")
    top = content[0].get("top_logprobs") or [content[0]]
    try:
        tokens = [(str(entry["token"]), float(entry["logprob"])) for entry in top]
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise BrokenReply(f"its top_logprobs cannot be read ({error!r})") from error
    found, spelled = answer_probabilities(tokens, answers)
    if not spelled:
        shown = ", ".join(repr(token) for token, _ in tokens[:5])
        raise NoReply(f"none of {', '.join(answers)} is among the {len(tokens)} likeliest first tokens ({shown}, ...)")
    return found


def schema_error(question: Question, said: Said) -> str:
    """Why the last reply is none: it was cut off in the middle of the JSON that was asked for. Else empty."""
    if question.schema is None or not said.cut:
        return ""
    try:
        parse_json(said.text)
    except ValueError:
        return f"the reply was cut off at {question.max_tokens} tokens and is no JSON: {said.text[:200]!r}"
    return ""


def error_text(content: bytes, limit: int = 300) -> str:
    """What a refusal says, in a line: the message of an OpenAI-like error, else the start of its body."""
    text = content.decode("utf-8", "replace")
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if isinstance(found, Mapping):
        inner = found.get("error", found)
        message = inner.get("message", inner.get("detail")) if isinstance(inner, Mapping) else inner
        text = str(message) if message else text
    return " ".join(text.split())[:limit]


def _choice(answer: Any) -> Mapping[str, Any]:
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], Mapping):
        what = error_text(json.dumps(answer).encode())
        raise BrokenReply(f"it has no choices: {what}")
    return choices[0]
