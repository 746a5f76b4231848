"""`srum-ds eval understanding`: what a model understands of given pictures, and whether training changed it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from srum_ds.commands.placement import Placement, resolve_placement
from srum_ds.common.errors import UserError

if TYPE_CHECKING:
    from srum_ds.evaluation.understanding.asking import Answer
    from srum_ds.evaluation.understanding.items import Item, ItemSet

KINDS = ("mme", "mmmu", "mmbench", "shapes")
RESULT = "understanding.json"
ANSWERS = "answers.jsonl"
MARKDOWN = "understanding.md"


def understanding(
    model: Path,
    *,
    questions: str,
    out: Path,
    kind: str = "",
    against: Path | None = None,
    limit: int | None = None,
    circular: bool = False,
    readout: str = "logprob",
    pictures: int = 200,
    seed: int = 0,
    batch: int = 16,
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Ask a model multiple-choice and yes/no questions about pictures, and another one the same.

    Parameters
    ----------
    model
        Model folder, or a run: its export, compared with the model that it started from.
    questions
        File or folder of questions (MME, MMMU or MMBench style), or `shapes` for the embedded world's own.
    out
        Folder for understanding.json, understanding.md and answers.jsonl.
    kind
        mme, mmmu, mmbench or shapes; told by --questions shapes and by .tsv files, else to be given.
    against
        Model folder to compare with: the figures before, where MODEL has those after.
    limit
        Ask about this many questions only, the first ones.
    circular
        MMBench: each question once for each rotation of its options, right where all are.
    readout
        logprob takes the likeliest option; generate reads a written answer.
    pictures
        Pictures of the embedded world, 12 questions each.
    seed
        Which pictures of the embedded world.
    batch
        Questions at once.
    device
        auto, cpu, cuda or cuda:1; auto is the GPU where there is one.
    dtype
        auto, float32, bfloat16 or float16; auto is bfloat16 on a GPU and float32 else.
    """
    if limit is not None and limit < 1 or batch < 1 or pictures < 1:
        raise UserError("--limit, --batch and --pictures must be at least 1.")
    folders = _folders(model, against)
    asked = _questions(questions, kind, circular, pictures, seed, limit)
    result = _understanding(folders, asked, out, readout, batch, Placement(device, dtype))
    print("\n".join(result["told"]))
    print(f"written: {out}/{RESULT}, {MARKDOWN}, {ANSWERS}")
    if not any(found["overall"]["n"] for found in result["models"].values()):
        raise UserError(
            f"{' and '.join(map(str, folders.values()))}: no usable answer to any of {result['n']} questions; "
            f"{out}/{ANSWERS} says why of each (--readout generate reads a written answer)"
        )


def _understanding(
    folders: dict[str, Path], asked: ItemSet, out: Path, readout: str, batch: int, placement: Placement
) -> dict[str, Any]:
    import json

    from srum_ds.common.files import weights_sha256, write_atomic
    from srum_ds.evaluation.understanding.accuracy import accuracy, compare, table

    items = asked.items
    answers = {name: _asked(folder, items, readout, batch, placement) for name, folder in folders.items()}
    models = {}
    for name, folder in folders.items():
        facts = {"folder": str(folder), "sha256": weights_sha256(folder)}
        models[name] = {**facts, **accuracy(items, answers[name])}
    result: dict[str, Any] = {
        "kind": asked.kind,
        "questions": asked.source,
        "n": len(items),
        "left_out": dict(asked.left_out),
        "readout": readout,
        "models": models,
    }
    if "before" in answers:
        result["difference"] = compare(items, answers["before"], answers["after"])
    told = [f"# Understanding: {asked.kind}", "", f"{len(items)} questions of {asked.source}, read by `{readout}`."]
    if asked.left_out:
        told.append(f"Left out: {', '.join(f'{count} with {why}' for why, count in asked.left_out.items())}.")
    told += ["", *table(result)]
    lines = []
    for place, item in enumerate(items):
        said = {name: _record(several[place]) for name, several in answers.items()}
        lines.append(json.dumps({"key": item.key, "answer": item.answer, "category": item.category, **said}))
    write_atomic(out / ANSWERS, "".join(line + "\n" for line in lines))
    write_atomic(out / MARKDOWN, "\n".join(told) + "\n")
    write_atomic(out / RESULT, json.dumps(result, indent=1) + "\n")
    return {**result, "told": told}


def _record(answer: Answer) -> dict[str, Any]:
    return {"said": answer.said, "right": answer.right, "failure": answer.failure, "words": answer.words}


def _asked(folder: Path, items: Sequence[Item], readout: str, batch: int, placement: Placement) -> list[Answer]:
    from rich.console import Console
    from rich.markup import escape

    from srum_ds.evaluation.understanding.asking import ask_items
    from srum_ds.models import load_model

    device, dtype = resolve_placement(placement)
    model = load_model(folder, dtype=dtype, device=device)
    with Console(stderr=True).status("") as status:
        told = escape(f"asking {folder}")
        return ask_items(model, items, readout, batch, lambda n, total: status.update(f"{told}: {n} of {total}"))


def _folders(model: Path, against: Path | None) -> dict[str, Path]:
    """The models to ask, by the name that results give them: ``before`` and ``after``, or ``model``."""
    from srum_ds.monitoring.run_folder import CONFIG, EXPORT

    if (model / CONFIG).is_file():
        from srum_ds.config import load_config

        trained = model / EXPORT
        if not trained.is_dir():
            raise UserError(f"{trained}: missing; the run has not finished: repeat its `srum-ds train`")
        base = Path(load_config(model / CONFIG, []).model.path) if against is None else against
        return {"before": base, "after": trained}
    return {"model": model} if against is None else {"before": against, "after": model}


def _questions(questions: str, kind: str, circular: bool, pictures: int, seed: int, limit: int | None) -> ItemSet:
    from dataclasses import replace

    from srum_ds.evaluation.understanding.mmbench import read_mmbench
    from srum_ds.evaluation.understanding.mme import read_mme
    from srum_ds.evaluation.understanding.mmmu import read_mmmu
    from srum_ds.worlds.shapes.understanding import shapes_items

    source = Path(questions)
    kind = kind or ("shapes" if questions == "shapes" else "mmbench" if source.suffix == ".tsv" else "")
    if kind not in KINDS:
        raise UserError(f"--kind {kind!r}: say of which kind {questions} is: {', '.join(KINDS)}")
    if circular and kind != "mmbench":
        raise UserError(f"--circular is for --kind mmbench, not {kind}")
    if kind == "shapes":
        found = shapes_items(pictures, seed)
    elif kind == "mmbench":
        found = read_mmbench(source, circular)
    else:
        found = read_mme(source) if kind == "mme" else read_mmmu(source)
    return found if limit is None else replace(found, items=_first(found.items, limit))


def _first(items: tuple[Item, ...], limit: int) -> tuple[Item, ...]:
    """The items of the first ``limit`` units: rotations of a question stay together."""
    units = list(dict.fromkeys(item.unit or item.key for item in items))
    kept = set(units[:limit])
    return tuple(item for item in items if (item.unit or item.key) in kept)
