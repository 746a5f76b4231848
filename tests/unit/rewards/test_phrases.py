"""Object phrases: split off a prompt, read out of a reply, remembered by prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from srum_ds.common.errors import UserError
from srum_ds.prompts.reader import PromptReader
from srum_ds.rewards.judge.judge import phrase_counts
from srum_ds.rewards.phrases.cache import PhraseBook, spacy_parser
from srum_ds.rewards.phrases.extract import gather, noun_chunks, parse_phrases, read_phrase, singular, split_prompt
from srum_ds.rewards.templates import Template, load_template
from srum_ds.types import Prompt
from tests.support.judges import WritingJudge
from tests.support.paths import PROMPTS

QUESTION = load_template("phrases")


def split_of(text: str) -> dict[str, int]:
    found = split_prompt(text)
    return dict(zip(found.phrases, found.counts, strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red bird and a brown giraffe", {"a red bird": 1, "a brown giraffe": 1}),
        ("a photo of a bench", {"a bench": 1}),
        ("three horses, one box and four bottles", {"a horse": 3, "a box": 1, "a bottle": 4}),
        ("6 mice", {"a mouse": 6}),
        ("a dog on the left of an apple", {"a dog": 1, "an apple": 1}),
        ("a boy on side of a key", {"a boy": 1, "a key": 1}),
        ("a suitcase on the bottom of a butterfly", {"a suitcase": 1, "a butterfly": 1}),
        ("a phone hidden by a cat", {"a phone": 1, "a cat": 1}),
        ("rubber gloves and a fluffy teddy bear", {"rubber gloves": 1, "a fluffy teddy bear": 1}),
        ("a cubic block with a cylindrical can of beans", {"a cubic block": 1, "a cylindrical can of beans": 1}),
        ("two cans of beans", {"a can of beans": 2}),
        (
            "The red umbrella was on top of the black umbrella stand.",
            {"a red umbrella": 1, "a black umbrella stand": 1},
        ),
        ("The soft, fluffy pillow next to the lamp", {"a soft fluffy pillow": 1, "a lamp": 1}),
        ("A man is holding a rake and tending to his garden.", {"a man": 1, "a rake": 1, "a garden": 1}),
        ("six microphones amplified the voices", {"a microphone": 6, "voices": 1}),
        ("a red circle and a red circle", {"a red circle": 2}),
        ("a king behind a ring", {"a king": 1, "a ring": 1}),
        ("fish", {"a fish": 1}),
        ("a room without a lamp and with no chairs in it", {"a room": 1}),
        ("...", {"...": 1}),
        # What a plain split cannot know.
        ("The ripe apples hung low on the branches", {"a ripe apples hung low": 1, "branches": 1}),
    ],
)
def test_plain_split_by_hand(text: str, expected: dict[str, int]) -> None:
    assert split_of(text) == expected


@pytest.mark.parametrize("split", ["validation", "test"])
def test_plain_split_finds_what_the_shapes_shards_say(split: str) -> None:
    """Their phrases and counts come from the scenes, not from the words."""
    checked = 0
    for prompt in PromptReader(PROMPTS, split):
        said: dict[str, int] = {}
        for phrase, count in zip(prompt.phrases, prompt.meta["counts"], strict=True):
            said[phrase] = said.get(phrase, 0) + count
        assert split_of(prompt.text) == said, prompt.text
        checked += 1
    assert checked >= 600


def test_one_of_several() -> None:
    pairs = (
        "circles circle, crosses cross, boxes box, buses bus, cherries cherry, dishes dish, women woman, knives knife"
    )
    pairs += ", vases vase, shoes shoe, tomatoes tomato, keys key, sheep sheep, glass glass, cactus cactus, bus bus"
    for pair in pairs.split(", "):
        many, one = pair.split()
        assert singular(many) == one


def test_one_phrase_by_hand() -> None:
    assert read_phrase("two red circles") == ("a red circle", 2)
    assert read_phrase("- the blue vase.") == ("a blue vase", 1)
    for written in ("2 x cat", "2x cats", "2 cats", "cat (2)", "cats (x2)", "cat x2", "**two** cats"):
        assert read_phrase(written) == ("a cat", 2)
    assert read_phrase("brown shoes") == ("brown shoes", 1)
    for nothing in ("", "the", "it", "top", "3", "zero dogs", "99 dogs", "word " * 13):
        assert read_phrase(nothing) is None
    assert gather(["a cat", "two cats", "?"]).counts == (3,)


PROMPT = "two black cats next to the wooden box"


@pytest.mark.parametrize(
    "reply",
    [
        "2 black cat\n1 wooden box",
        "1. two black cats\n2. a wooden box",
        "- 2 x black cat\n- wooden box",
        '```json\n["two black cats", "a wooden box"]\n```',
        "two black cats, a wooden box",
        "two black cats and a wooden box",
        "<think>The request has\na black dog?</think>\n* **black cats (2)**\n* wooden box",
        "The objects are as follows for this request, all of them listed here one by one:\n2 black cats\na wooden box",
        "2 black cats\na wooden box\na green tree",
    ],
)
def test_lists_as_judges_write_them(reply: str) -> None:
    found = parse_phrases(reply, PROMPT)
    assert found is not None
    assert dict(zip(found.phrases, found.counts, strict=True)) == {"a black cat": 2, "a wooden box": 1}


@pytest.mark.parametrize(
    "reply", ["", "yes yes yes yes", "none", "<think>two black cats", "[]", "a green tree", "[1, 2]"]
)
def test_replies_without_a_list(reply: str) -> None:
    assert parse_phrases(reply, PROMPT) is None


def test_spacys_noun_chunks() -> None:
    spacy = pytest.importorskip("spacy")
    words = ["She", "holds", "two", "red", "cups"]
    document = spacy.tokens.Doc(
        spacy.blank("en").vocab,
        words=words,
        pos=["PRON", "VERB", "NUM", "ADJ", "NOUN"],
        heads=[1, 1, 4, 4, 1],
        deps=["nsubj", "ROOT", "nummod", "amod", "dobj"],
    )
    found = noun_chunks(document)
    assert (found.phrases, found.counts) == (("a red cup",), (2,))


def lister(table: dict[str, str]) -> WritingJudge:
    """Answers the phrases question out of a table, and says nonsense about every other prompt."""
    return WritingJudge(lambda q, attempt: next((reply for text, reply in table.items() if text in q), "yes yes"))


KNOWN = Prompt("known", "three green circles", phrases=("a green circle",), meta={"counts": [3]})
CATS = Prompt("cats", PROMPT, meta={"kind": "spatial"})
VAGUE = Prompt("vague", "a dog and a cup")
THIRD = Prompt("third", "a box and a cup")
TABLE = {PROMPT: "2 black cat\n1 wooden box"}


def book(mode: str = "auto", folder: Path | None = None, rank: int = 0, template: Template = QUESTION) -> PhraseBook:
    return PhraseBook(mode, template, folder=folder, rank=rank)


def test_the_shard_then_the_judge_then_a_split() -> None:
    judge = lister(TABLE)
    known, cats, vague = book().complete(judge, (KNOWN, CATS, VAGUE))
    assert known is KNOWN
    assert cats.phrases == ("a black cat", "a wooden box") and phrase_counts(cats) == (2, 1)
    assert cats.meta["kind"] == "spatial" and cats.meta["phrases_from"] == "ask"
    assert (cats.id, cats.text) == (CATS.id, CATS.text)
    fallback = "split" if spacy_parser() is None else "spacy"
    assert vague.phrases == ("a dog", "a cup") and vague.meta["phrases_from"] == fallback


def test_modes() -> None:
    judge = lister(TABLE)
    assert book("ask").complete(judge, (KNOWN,))[0].meta["phrases_from"] in ("split", "spacy")
    asked = len(judge.calls)
    assert book("split").complete(judge, (CATS,))[0].phrases == ("a black cat", "a wooden box")
    assert book("shard").complete(judge, (KNOWN,)) == (KNOWN,)
    assert len(judge.calls) == asked
    with pytest.raises(UserError, match="'cats' has no object phrases.*regions.phrases=auto"):
        book("shard").complete(judge, (KNOWN, CATS))
    with pytest.raises(UserError, match="never mentions"):
        book(template=Template(text="what?", name="what", sha256=""))


def test_a_prompt_is_asked_about_once() -> None:
    judge = lister(TABLE)
    one = book()
    first = one.complete(judge, (CATS, VAGUE, CATS))
    assert judge.sizes == [(1, 2)]
    assert one.complete(judge, (VAGUE, CATS)) == (first[1], first[0])
    assert judge.sizes == [(1, 2)]
    # A judge answers about images: the question comes with a blank one.
    assert not judge.images[0][0].any()


def test_what_is_known_is_not_asked_and_a_call_asks_about_a_batch() -> None:
    sizes = []
    for prompts in ((CATS, VAGUE, THIRD), (CATS, CATS), (KNOWN, KNOWN)):
        judge = lister(TABLE)
        one = PhraseBook("auto", QUESTION, batch=2)
        one.complete(judge, prompts)
        sizes.append(judge.sizes)
        assert set(one.entries) == {p.text for p in prompts if p is not KNOWN}
    assert sizes == [[(1, 2), (1, 1)], [(1, 1)], []]


def test_a_resumed_run_sees_what_the_killed_one_saw(tmp_path: Path) -> None:
    before = book(folder=tmp_path).complete(lister(TABLE), (CATS,))
    # The judge would say something else now.
    changed = lister({PROMPT: "1 cat"})
    again = book(folder=tmp_path)
    assert again.complete(changed, (CATS,)) == before
    assert changed.calls == []
    record = json.loads((tmp_path / "rank-00000.json").read_text())
    assert record["template"] == QUESTION.sha256
    assert record["entries"][PROMPT] == {
        "phrases": ["a black cat", "a wooden box"],
        "counts": [2, 1],
        "source": "ask",
        "reply": TABLE[PROMPT],
    }
    # Another number of ranks knows it as well; a rank's own entry goes before another's.
    assert book(folder=tmp_path, rank=1).complete(changed, (CATS,)) == before
    other = book(folder=tmp_path, rank=1)
    other.complete(changed, (VAGUE,))
    assert {path.name for path in tmp_path.iterdir()} == {"rank-00000.json", "rank-00001.json"}
    assert book(folder=tmp_path).complete(changed, (VAGUE, CATS))[1] == before[0]


def test_a_book_of_another_question_is_refused(tmp_path: Path) -> None:
    book(folder=tmp_path).complete(lister(TABLE), (CATS,))
    edited = Template(text=QUESTION.text + " Go.", name="phrases", sha256="other")
    with pytest.raises(UserError, match="regions.phrases_template"):
        book(folder=tmp_path, template=edited)
    with pytest.raises(UserError, match="regions.phrases"):
        book("ask", folder=tmp_path)
    (tmp_path / "rank-00000.json").write_text("{")
    with pytest.raises(UserError, match="rank-00000.json is no phrase book"):
        book(folder=tmp_path)


def test_blank_pictures_have_the_size_they_are_given() -> None:
    judge = lister(TABLE)
    PhraseBook("ask", QUESTION, 7, (32, 48)).complete(judge, (CATS,))
    (images,) = judge.images
    assert len(images) == 1 and torch.equal(images[0], torch.zeros(3, 32, 48))
    assert judge.max_new_tokens == [7]
