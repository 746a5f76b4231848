"""Makes the embedded model again from a seed: autoencoder, examples, both halves, drawing, checkpoint.

    python -m srum_ds.worlds.shapes.pretrain --work runs/pretrain --out srum_ds/assets/tiny_bagel

Every stage is skipped where its result stands in ``--work``; the training itself resumes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from srum_ds.worlds.shapes.pretrain.drawing import DrawingPlan, train_drawing
from srum_ds.worlds.shapes.pretrain.model import build, write_config
from srum_ds.worlds.shapes.pretrain.pool import build_pool, load_pool
from srum_ds.worlds.shapes.pretrain.publish import publish
from srum_ds.worlds.shapes.pretrain.umm import Plan, train


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain"), help="folder for stages and state")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain/tiny_bagel"), help="checkpoint folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=60000)
    parser.add_argument("--round-trips", type=int, default=24000)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--drawing-steps", type=int, default=DrawingPlan.steps)
    parser.add_argument("--altered", type=float, default=DrawingPlan.altered, help="share of untrue captions")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    if not (work / "vae.json").exists():
        vae = [
            sys.executable,
            "-m",
            "srum_ds.worlds.shapes.pretrain.vae",
            "--out",
            str(work),
            "--seed",
            str(args.seed),
        ]
        subprocess.run([*vae, "--threads", str(args.threads)], check=True)
    if not (work / "texts.json").exists():
        build_pool(work, args.scenes, args.round_trips, args.seed)
    write_config(work / "model", json.loads((work / "vae.json").read_text()))
    module, tokenizer = build(work / "model", args.seed)
    pool = load_pool(work)
    train(module, tokenizer, pool, Plan(steps=args.steps, seed=args.seed + 1), work)
    drawing = DrawingPlan(steps=args.drawing_steps, altered=args.altered, seed=args.seed + 77)
    train_drawing(module, tokenizer, pool, drawing, work)
    publish(work, args.out)


if __name__ == "__main__":
    main()
