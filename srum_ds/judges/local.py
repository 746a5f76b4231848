"""A vision-language model of the ``transformers`` library in this process: ``--judge transformers``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES, processor_class_from_name

from srum_ds.common.errors import UserError
from srum_ds.common.files import weights_sha256
from srum_ds.common.finite import refuse_module
from srum_ds.config import find_path
from srum_ds.judges.inprocess import Talk, ask_in_batches
from srum_ds.judges.protocol import Ask, JudgeSettings, Reply
from srum_ds.judges.words import answer_of
from srum_ds.models import default_dtype
from srum_ds.models.library.spelled_tokens import SpelledTokens


class LocalJudge:
    """Asks a vision-language model, greedily, in batches that are padded on the left.

    The system's turn, the judge's own replies and the picture's place go through the processor's chat template; a
    schema is not enforced. The probability of an answer is that of all tokens that spell it (``words.answer_of``), as
    over HTTP; of an answer that no single token spells, that of its first token.
    """

    kind = "transformers"
    under_test = False

    def __init__(self, name: str, module: Any, processor: Any, batch: int) -> None:
        self.model = name
        self._module = module
        self._processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        # What is written starts in the same column for all.
        self._tokenizer.padding_side = "left"
        self._batch = batch
        self._spelled = SpelledTokens(self._tokenizer)
        self._tokens_of = lru_cache(maxsize=64)(self._find_tokens)

    def ask(self, asks: Iterable[Ask]) -> Iterator[tuple[int, Reply]]:
        """See ``PictureJudge``."""
        return ask_in_batches(self, asks, self._batch)

    def write(self, talks: Sequence[Talk], max_tokens: int) -> Sequence[str]:
        """See ``Speaker``."""
        inputs = self._inputs(talks)
        ids_BL = self._generate(inputs, max_tokens).sequences[:, inputs["input_ids"].shape[1] :]
        texts = self._tokenizer.batch_decode(ids_BL, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def weigh(self, talks: Sequence[Talk], answers: Sequence[str]) -> Sequence[Sequence[float]]:
        """See ``Speaker``. UserError for answers that begin with the same token."""
        logits_BV: Tensor = self._generate(self._inputs(talks), 1).logits[0]
        shares_BV = logits_BV.float().softmax(dim=-1)
        tokens = self._tokens_of(tuple(answers), shares_BV.shape[1])
        columns = [shares_BV[:, list(ids)].sum(dim=1) for ids in tokens]
        rows: list[list[float]] = torch.stack(columns, dim=1).cpu().tolist()
        return rows

    def close(self) -> None:
        """Frees the model."""
        del self._module

    @torch.no_grad()
    def _generate(self, inputs: Any, max_tokens: int) -> Any:
        # Greedy, whatever the folder's generation_config.json says of sampling and penalties.
        return self._module.generate(
            **inputs,
            max_new_tokens=max_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            output_logits=max_tokens == 1,
            return_dict_in_generate=True,
        )

    def _inputs(self, talks: Sequence[Talk]) -> Any:
        for talk in talks:
            for text in (*talk.ask.question.turns, talk.ask.question.system):
                if token := self._spelled.in_text(text):
                    raise UserError(f"the question spells {token}, which would end or begin a turn: leave it out")
        inputs = self._processor.apply_chat_template(
            [conversation(talk) for talk in talks],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            processor_kwargs={"padding": True, "return_tensors": "pt"},
        )
        return inputs.to(self._module.device, dtype=self._module.dtype)

    def _find_tokens(self, answers: tuple[str, ...], vocabulary: int) -> tuple[tuple[int, ...], ...]:
        """The ids of the tokens that spell each answer, or its first token where none does."""
        found: list[list[int]] = [[] for _ in answers]
        for number, token in enumerate(self._tokenizer.batch_decode([[n] for n in range(vocabulary)])):
            position = answer_of(token, answers)
            if position is not None:
                found[position].append(number)
        taken = {number for ids in found for number in ids}
        for answer, ids in zip(answers, found, strict=True):
            if ids:
                continue
            first = self._tokenizer.encode(answer, add_special_tokens=False)[:1]
            if not first or first[0] in taken:
                raise UserError(
                    f"{self.model}: the answers {list(answers)} must differ in their first tokens; choose others"
                )
            ids.append(first[0])
            taken.add(first[0])
        return tuple(tuple(ids) for ids in found)


def conversation(talk: Talk) -> list[dict[str, Any]]:
    """The messages that a chat template takes, the picture in the first turn."""
    question = talk.ask.question
    picture = {"type": "image", "image": talk.picture}
    text = _text(question.turns[0])
    said = [{"role": "system", "content": [_text(question.system)]}] if question.system else []
    said.append({"role": "user", "content": [picture, text] if question.picture_first else [text, picture]})
    for reply, turn in zip(talk.replies, question.turns[1:], strict=False):
        said += [{"role": "assistant", "content": [_text(reply)]}, {"role": "user", "content": [_text(turn)]}]
    return said


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def open_processor(path: str) -> Any:
    """The processor of a folder or hub id. Where torchvision is missing, the same without its part for videos.

    UserError where there is none.
    """
    try:
        return AutoProcessor.from_pretrained(path)
    except ImportError as error:
        if "torchvision" not in str(error).casefold():
            raise _no_model(path, error) from error
        return _without_videos(path, error)
    except (OSError, ValueError, KeyError) as error:
        raise _no_model(path, error) from error


def _without_videos(path: str, missing: ImportError) -> Any:
    base = processor_class_from_name(PROCESSOR_MAPPING_NAMES.get(AutoConfig.from_pretrained(path).model_type, ""))
    opened: dict[str, Any] = {"video_processor": None}
    known: dict[str, Any] = {"tokenizer": AutoTokenizer, "image_processor": AutoImageProcessor}
    names = [] if base is None else list(base.get_attributes())
    try:
        opened |= {name: known[name].from_pretrained(path) for name in names if name != "video_processor"}
    except (KeyError, ImportError):
        names = []
    if "video_processor" not in names:
        raise UserError(f"{path}: its processor needs torchvision; install it ({' '.join(str(missing).split())[:200]})")

    class WithoutVideos(base):  # type: ignore[misc, valid-type]
        """The library's processor, which would refuse a part that is not there."""

        def check_argument_for_proper_class(self, name: str, part: Any) -> Any:
            return None if part is None else super().check_argument_for_proper_class(name, part)

    template = opened["tokenizer"].chat_template
    return WithoutVideos(**opened, chat_template=template)


def _no_model(path: str, error: Exception) -> UserError:
    return UserError(
        f"--judge-model {path}: no vision-language model can be opened there ({' '.join(str(error).split())[:300]}); "
        f"give the folder or hub id of one that AutoModelForImageTextToText knows, such as Qwen/Qwen2.5-VL-7B-Instruct"
    )


def local_judge(settings: JudgeSettings) -> LocalJudge:
    """The entry of the registry: ``model`` is a folder or hub id, ``device`` where it computes.

    UserError without one, and where it holds no vision-language model.
    """
    if not settings.model:
        raise UserError("--judge transformers needs --judge-model: the folder or hub id of a vision-language model")
    path = str(find_path(settings.model))
    device = torch.device(settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    processor = open_processor(path)
    try:
        module: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=default_dtype(device))
    except (OSError, ValueError, KeyError) as error:
        raise _no_model(path, error) from error
    refuse_module(module, path)
    if not getattr(processor, "chat_template", None):
        raise UserError(f"--judge-model {path}: has no chat template; copy chat_template.jinja from the release")
    return LocalJudge(_name(path, module), module.to(device).eval(), processor, settings.batch)


def _name(path: str, module: Any) -> str:
    """The folder's name and a hash of its weights, or the hub id and its commit."""
    folder = Path(path)
    if folder.is_dir():
        return f"{folder.resolve().name} {weights_sha256(folder)[:16]}"
    commit = getattr(module.config, "_commit_hash", None)
    return f"{path} {commit[:16]}" if commit else path
