"""What stands beside the weights of an export: ``generation.json``, the model card, and a picture of before and after.

A run's export calls ``write_export_extras``; ``card_figures`` puts what an evaluation measured into the card.
"""

from __future__ import annotations

from pathlib import Path

from srum_ds import __version__
from srum_ds.common.files import weights_sha256, write_atomic
from srum_ds.config import Config
from srum_ds.evaluation.gallery import fixed_gallery, save_gallery
from srum_ds.evaluation.model_card import CARD, EVALUATIONS, GALLERY, RESULT, card_text, public_name
from srum_ds.models import family_of
from srum_ds.models.generation import generation_of, write_generation
from srum_ds.rollouts.collect import sampling_of


def write_export_extras(folder: Path, cfg: Config, step: int, weights: str, run_dir: Path | None = None) -> None:
    """Writes ``generation.json``, ``README.md`` and, where pictures are there, ``gallery.png`` into an exported folder.

    folder: the export, whole or still under another name. step: steps that its weights have taken. weights: ``ema``,
    ``live`` or ``old``. run_dir: the run whose evaluation may be shown, if it was one of these very weights; None: none
    is. Raises UserError for a sampler's setting that the design lacks, and where the folder cannot be written.
    """
    family = family_of(cfg.model.path, cfg.model.kind)
    about = {
        "written_by": f"srum-ds {__version__}",
        "step": step,
        "weights": weights,
        "trained": cfg.model.trains,
        "base": public_name(str(cfg.written("model.path"))),
    }
    write_generation(folder, generation_of(family, sampling_of(cfg, "eval"), cfg.rollout.image_size, about))
    # A base that was exported itself has brought its own along.
    (folder / GALLERY).unlink(missing_ok=True)
    found = ""
    if run_dir is not None and _evaluated(run_dir):
        # What it imports takes longer than a run's start should.
        from srum_ds.evaluation.card_figures import measured

        found = measured(folder, run_dir, weights_sha256(folder))
    if not found:
        found = "Not measured yet: `srum-ds eval`, given the run's folder, draws held-out prompts and writes it here."
        shown = None if run_dir is None else fixed_gallery(run_dir, step, weights)
        if shown is not None:
            save_gallery(folder / GALLERY, shown)
            said = f"The run's fixed prompts, the same seeds: before the first step, and after step {step}."
            found = f"![base beside trained]({GALLERY})\n\n{said}\n\n{found}"
    write_atomic(folder / CARD, card_text(cfg, family.kind, step, weights, found))


def _evaluated(run_dir: Path) -> bool:
    return (run_dir / RESULT).is_file() or (run_dir / EVALUATIONS).is_dir()
