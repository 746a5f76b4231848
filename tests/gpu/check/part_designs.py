"""Each design, tiny and random: trained by the real engine in one rank, resumed and exported, against the CPU."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.gpu.check.measuring import Figures, Where
from tests.gpu.check.part_training import train_all
from tests.support.designs import DESIGNS, run_words
from tests.support.runs import metrics, write_prompts

STEPS = 2
RESUMED_STEPS = 3
WORDS = ("log.progress=false", "deepspeed.config=ds_configs/zero3.json")
LOSS = {"showo": ("objective.name=sft",)}
"""Show-o's judge reads a crop as codes: a rounding turns one over and with it a reward, which no loss may depend on."""

WITHIN = 1e-3
"""How far a step's loss may be from the CPU's, relative."""

EXPORT_WITHIN = 1e-4
"""How far what the library's own class computes from an export may be from what the adapter does, relative."""


def run(figures: Figures, where: Where) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shards = write_prompts(root / "prompts", 12)
        folders = {name: root / name for name in DESIGNS}
        folders |= {f"cpu_{name}": root / f"cpu_{name}" for name in DESIGNS}
        models = {name: DESIGNS[name].write(root / "models" / name) for name in DESIGNS}
        commands = {
            key: run_words(
                key.removeprefix("cpu_"), models[key.removeprefix("cpu_")], shards, run_dir,
                *WORDS, *LOSS.get(key.removeprefix("cpu_"), ()), f"train.steps={STEPS}",
            )
            for key, run_dir in folders.items()
        }  # fmt: skip
        ended = train_all(commands, where.rehearse)
        again = {name: [*commands[name], f"train.steps={RESUMED_STEPS}"] for name in DESIGNS if not ended[name][0]}
        ended |= {f"{name}, resumed": found for name, found in train_all(again, where.rehearse).items()}
        failed = {name: said for name, (status, said) in ended.items() if status}
        for name, said in failed.items():
            print(f"---- {name}\n{said}")
        wrong = [f"{name} failed" for name in failed]
        for name in DESIGNS:
            if not failed.keys() & {name, f"cpu_{name}", f"{name}, resumed"}:
                found = _compared(folders[name], folders[f"cpu_{name}"])
                redraws = DESIGNS[name].redraws
                if redraws is not None:
                    found["export_off_its_library"] = redraws(folders[name] / "export")
                figures[name] = found
                wrong += _wrong(name, found)
    figures["wrong"] = wrong
    if wrong:
        raise AssertionError("; ".join(wrong))


def _compared(run_dir: Path, on_cpu: Path) -> dict[str, float]:
    """How far the steps' figures are from the CPU's, relative, and how many steps there are once resumed."""
    lines, others = metrics(run_dir), metrics(on_cpu)
    found: dict[str, float] = {"steps": len(lines)}
    for key in ("loss", "reward_global", "reward_local", "grad_norm"):
        pairs = [(line[key], other[key]) for line, other in zip(lines, others, strict=False)]
        found[f"{key}_off_the_cpus"] = max(abs(one - other) / max(abs(other), 1e-6) for one, other in pairs)
    return found


def _wrong(name: str, found: dict[str, float]) -> list[str]:
    wrong = []
    if found["steps"] != RESUMED_STEPS:
        wrong.append(f"{name} has {found['steps']} steps of {RESUMED_STEPS}")
    if not found["loss_off_the_cpus"] <= WITHIN:
        wrong.append(f"{name}: the loss is {found['loss_off_the_cpus']:.1e} off the CPU's")
    if not found.get("export_off_its_library", 0.0) <= EXPORT_WITHIN:
        wrong.append(f"{name}: the export is {found['export_off_its_library']:.1e} off its library's")
    return wrong
