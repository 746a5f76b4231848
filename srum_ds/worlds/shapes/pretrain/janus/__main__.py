"""Makes the embedded tiny Janus again from a seed: autoencoder, examples, training, checkpoint.

    python -m srum_ds.worlds.shapes.pretrain.janus --work runs/pretrain_janus --out srum_ds/assets/tiny_janus

Every stage is skipped where its result stands in ``--work``; the training itself resumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from srum_ds.worlds.shapes.pretrain.janus.model import Size, build
from srum_ds.worlds.shapes.pretrain.janus.pool import build_pool, load_drawing, load_looking
from srum_ds.worlds.shapes.pretrain.janus.publish import publish
from srum_ds.worlds.shapes.pretrain.janus.umm import NAME, Plan, train
from srum_ds.worlds.shapes.pretrain.janus.vq import VqSchedule, make_vq, vq_config

GUIDANCE = 1.5


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/pretrain_janus"), help="folder for stages and state")
    parser.add_argument("--out", type=Path, default=Path("runs/pretrain_janus/tiny_janus"), help="checkpoint folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=60000)
    parser.add_argument("--worn", type=int, default=12000)
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--altered", type=float, default=Plan.altered, help="share of untrue captions")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    size = Size()
    if not (work / "vq.json").exists():
        make_vq(vq_config(size.codes, size.code_dim, size.hidden), work, VqSchedule(), args.seed)
    if not (work / "drawing.safetensors").exists():
        build_pool(work, args.scenes, args.worn, args.seed)
    model, wording = build(size, load_file(work / "vq.safetensors"), args.seed)
    drawing = load_drawing(work / "drawing.safetensors")
    looking = [load_looking(work / "fresh.safetensors"), load_looking(work / "worn.safetensors")]
    plan = Plan(steps=args.steps, altered=args.altered, seed=args.seed + 1)
    train(model, wording, drawing, looking, plan, work)
    publish(work, work / f"{NAME}-{plan.steps}.safetensors", args.out, size, GUIDANCE)


if __name__ == "__main__":
    main()
