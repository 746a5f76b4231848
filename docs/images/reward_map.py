"""Draws docs/images/reward_map.png: samples of one prompt, their regions with scores, and the weight of each token.

    srum-ds train tiny run.dir=runs/shown rollout.keep=true train.steps=20
    python docs/images/reward_map.py runs/shown --step 20 --prompt 3 --out docs/images/reward_map.png

The rollouts of the step are read, and weighed as the step has weighed them. Without --prompt each of the step's prompts
is listed with its samples' scores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from matplotlib.cm import ScalarMappable  # noqa: E402
from matplotlib.colors import Normalize  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402

from srum_ds.config import load_config  # noqa: E402
from srum_ds.monitoring.images import score_colour  # noqa: E402
from srum_ds.objectives import get_objective  # noqa: E402
from srum_ds.rewards.token_weights import token_weights  # noqa: E402
from srum_ds.rollouts.shards import RolloutReader  # noqa: E402
from srum_ds.types import Judged  # noqa: E402

ROWS = ("drawn", "regions, with their local reward", "weight of each token")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, made with rollout.keep=true")
    parser.add_argument("--step", type=int, default=1, help="from 1")
    parser.add_argument("--prompt", type=int, help="its place in the step, from 0")
    parser.add_argument("--samples", type=int, nargs="+", help="which of its samples, from 0 (all)")
    parser.add_argument("--out", type=Path, default=Path("reward_map.png"))
    words = parser.parse_args()
    cfg = load_config(words.run / "config.yaml")
    kind = get_objective(cfg.objective.name).weights
    reader = RolloutReader(words.run / "rollouts")
    batches = reader.batches(words.step - 1, cfg.rollout.micro_batch_prompts)
    place = 0
    for judged in batches:
        map_Nhw = token_weights(kind, judged, cfg.reward).map_Nhw
        assert map_Nhw is not None, f"{cfg.objective.name} has no token weights"
        for group, prompt in enumerate(judged.samples.prompts):
            chosen = torch.nonzero(judged.samples.group_N == group).flatten().tolist()
            if words.prompt is None:
                scores = " ".join(f"{judged.scores.global_N[n]:+.2f}" for n in chosen)
                print(f"{place:3d}  {prompt.text}: {scores}")
            elif words.prompt == place:
                draw(judged, map_Nhw, [chosen[k] for k in words.samples or range(len(chosen))], prompt.text, words.out)
            place += 1


def draw(judged: Judged, map_Nhw: torch.Tensor, images: list[int], prompt: str, out: Path) -> None:
    """Writes the figure: a column for each image, three rows. map_Nhw: weights in [-1, 1]."""
    figure, axes = plt.subplots(3, len(images), figsize=(2.1 * len(images) + 1.3, 7.2), squeeze=False, dpi=110)
    for column, n in enumerate(images):
        picture = judged.samples.images_NCHW[n].permute(1, 2, 0).numpy()
        height, width = picture.shape[:2]
        for row in range(3):
            axes[row][column].set_xticks([])
            axes[row][column].set_yticks([])
            axes[row][column].imshow(picture, extent=(0, width, height, 0), interpolation="nearest")
        axes[0][column].set_title(f"global {judged.scores.global_N[n]:+.2f}", fontsize=10)
        for r in torch.nonzero(judged.regions.owner_R == n).flatten().tolist():
            x0, y0, x1, y1 = (judged.regions.boxes_R4[r] * torch.tensor([width, height, width, height])).tolist()
            score = float(judged.scores.local_R[r])
            colour = [c / 255 for c in score_colour(score)]
            axes[1][column].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=2))
            axes[1][column].text(
                x0 + 1, y0 - 1.5 if y0 > 8 else y1 + 6, f"{score:+.2f}", color=colour, fontsize=9, weight="bold"
            )
        axes[2][column].imshow(
            map_Nhw[n].numpy(), extent=(0, width, height, 0), cmap="RdYlGn", vmin=-1, vmax=1, alpha=0.75
        )
    for row, name in enumerate(ROWS):
        axes[row][0].set_ylabel(name, fontsize=10)
    figure.suptitle(f"“{prompt}”", fontsize=12)
    figure.tight_layout(rect=(0, 0, 0.93, 0.97))
    bar = figure.add_axes((0.94, 0.05, 0.015, 0.25))
    figure.colorbar(ScalarMappable(Normalize(-1, 1), "RdYlGn"), cax=bar)
    figure.savefig(out)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
