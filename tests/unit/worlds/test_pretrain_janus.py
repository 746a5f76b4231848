"""Pretraining of the tiny Janus on a handful of pictures: its codes, its words, what resumes, what is published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import JanusProcessor

from srum_ds.common.errors import UserError
from srum_ds.worlds.shapes.checker import detect
from srum_ds.worlds.shapes.pretrain.janus import umm
from srum_ds.worlds.shapes.pretrain.janus.draw import draw_codes
from srum_ds.worlds.shapes.pretrain.janus.measure import Bare
from srum_ds.worlds.shapes.pretrain.janus.model import Size, answer_logits, build, code_logits, generation_config
from srum_ds.worlds.shapes.pretrain.janus.patches import alphabet, looked_up, painted, undisturbed
from srum_ds.worlds.shapes.pretrain.janus.pool import build_pool, exchange_codes, load_drawing, load_looking
from srum_ds.worlds.shapes.pretrain.janus.prompting import build_processor, pixel_values
from srum_ds.worlds.shapes.pretrain.janus.publish import publish
from srum_ds.worlds.shapes.pretrain.janus.vq import VqSchedule, code_maps, decoded, load_vq, make_vq, vq_config
from srum_ds.worlds.shapes.render import random_arrays, render_arrays
from srum_ds.worlds.shapes.world import has_held_out_pair
from tests.support.tiny_janus import drawing

SIZE = Size(
    hidden=32,
    intermediate=48,
    layers=2,
    heads=4,
    key_value_heads=2,
    vision_hidden=16,
    vision_layers=1,
    vision_heads=2,
    codes=49,
    code_dim=16,
)
PLAN = umm.Plan(steps=2, captions=4, pictures=3, crops=3, own_from=1, own_pictures=3, snapshot_every=2)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an autoencoder that hardly learned, and a pool of a few examples."""
    folder = tmp_path_factory.mktemp("pretrain_janus")
    schedule = VqSchedule(steps=2, encoder_steps=1, pictures=2, compiled=False)
    make_vq(vq_config(SIZE.codes, SIZE.code_dim, SIZE.hidden), folder, schedule, seed=0, pictures=4)
    build_pool(folder, 12, 6, seed=5, processes=0)
    return folder


def test_the_alphabet_paints_every_undisturbed_picture() -> None:
    assert len(alphabet()) == 49
    arrays = undisturbed(random_arrays(40, torch.Generator().manual_seed(0), 0.4, 0.0).to(torch.int8))
    images = render_arrays(arrays)
    codes_NT = looked_up(images)
    assert torch.equal(painted(codes_NT), images)
    assert torch.equal(looked_up(painted(codes_NT)), codes_NT)


def test_decoding_is_the_library_s_own(work: Path) -> None:
    vq = load_vq(vq_config(SIZE.codes, SIZE.code_dim, SIZE.hidden), work)
    codes_NT = code_maps(3, torch.Generator().manual_seed(0))
    with torch.no_grad():
        library = vq.decode(codes_NT)
    torch.testing.assert_close(decoded(vq, codes_NT), library)


def test_pool_holds_codes_of_true_pictures_and_what_the_checker_sees(work: Path) -> None:
    drawing = load_drawing(work / "drawing.safetensors")
    assert drawing.codes_NT.shape == (12, 16)
    assert int(drawing.codes_NT.max()) < SIZE.codes
    assert all(drawing.strings[i] for i in drawing.caption_N.tolist())
    fresh, worn = load_looking(work / "fresh.safetensors"), load_looking(work / "worn.safetensors")
    assert 0 < len(fresh) <= 12 and len(worn) <= 6
    assert fresh.question["match"].shape == (len(fresh), 5) and fresh.crop_box_N4.shape == (len(fresh), 4)
    images = fresh.images(torch.arange(len(fresh)))
    assert torch.equal(painted(looked_up(images)), images), "a picture to look at that no codes draw"
    for image in worn.images(torch.arange(len(worn))):
        assert not has_held_out_pair(detect(image))


def test_foreign_codes_stand_where_something_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    codes_NT = torch.zeros(400, 64, dtype=torch.int64)
    codes_NT[:, :16] = torch.randint(1, 9, (400, 16), generator=generator)
    changed = exchange_codes(codes_NT, generator)
    differs = changed != codes_NT
    assert 0.25 < (~differs.any(1)).float().mean() < 0.6
    assert differs[:, :16].float().mean() > 3 * differs[:, 16:].float().mean()
    assert set(changed[differs].tolist()) <= set(range(1, 9))


def test_training_resumes_to_the_same_bits_and_its_folder_is_the_library_s_own(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("srum_ds.worlds.shapes.pretrain.stage.SAVE_EVERY", 1)
    drawing = load_drawing(work / "drawing.safetensors")
    looking = [load_looking(work / "fresh.safetensors"), load_looking(work / "worn.safetensors")]

    def run(out: Path, interrupted: bool) -> dict[str, torch.Tensor]:
        out.mkdir(exist_ok=True)
        model, wording = build(SIZE, load_file(work / "vq.safetensors"), 0)
        if interrupted:
            with monkeypatch.context() as patch:
                patch.setattr(umm, "draw_own", _interrupt)
                with pytest.raises(KeyboardInterrupt):
                    umm.train(model, wording, drawing, looking, PLAN, out, compiled=False)
            # Another process starts with other weights.
            model, wording = build(SIZE, load_file(work / "vq.safetensors"), 1)
        umm.train(model, wording, drawing, looking, PLAN, out, compiled=False)
        return load_file(out / "joint.safetensors")

    whole, resumed = run(tmp_path / "whole", False), run(tmp_path / "resumed", True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    with pytest.raises(UserError, match="another captions: choose another --work"):
        model, wording = build(SIZE, None, 0)
        umm.train(model, wording, drawing, looking, replace(PLAN, captions=5), tmp_path / "whole", compiled=False)

    out = tmp_path / "checkpoint"
    publish(work, tmp_path / "whole" / "joint-2.safetensors", out, SIZE, guidance=1.5)
    bare = Bare.load(out)
    stored = dict(bare.model.named_parameters())
    assert all(
        torch.equal(p, whole["ema/" + name].bfloat16().float())
        for name, p in stored.items()
        if not name.startswith("model.vqmodel.")
    )
    assert JanusProcessor.from_pretrained(out).num_image_tokens == 16


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_passes_equal_the_library_s_own(work: Path) -> None:
    """A question's answer, teacher-forced codes and drawn codes, against the library's processor and classes."""
    model, wording = build(SIZE, load_file(work / "vq.safetensors"), 0)
    model.model.generation_head.vision_head.weight.data.mul_(20)
    model.eval()
    processor = build_processor(64, 16)
    image = load_looking(work / "worn.safetensors").images(torch.tensor([0]))
    question = "is this a striped red circle?"
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    picture = Image.fromarray((image[0] * 255).round().byte().permute(1, 2, 0).numpy())
    inputs = processor(
        text=processor.apply_chat_template(turn, add_generation_prompt=True), images=[picture], return_tensors="pt"
    )
    rows = wording.questions([question, "is this a solid blue object?"])
    with torch.no_grad():
        library = model(**inputs).logits[0, -1]
        answers = answer_logits(model, wording, pixel_values(image), rows.ids_SL[None], rows.length_S[None])
    assert torch.allclose(answers[0, 0], library, atol=1e-5)

    texts = ["a red circle", "a striped red circle left of a solid blue square"]
    turns = [[{"role": "user", "content": [{"type": "text", "text": text}]}] for text in texts]
    rendered = [processor.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
    inputs = processor(text=rendered, generation_mode="image", padding=True, return_tensors="pt")
    model.generation_config = generation_config(processor.tokenizer, 3.0)
    codes = drawing(model).generate(**inputs, generation_mode="image", do_sample=False, guidance_scale=3.0)
    # A very low temperature takes the likeliest code.
    drawn = draw_codes(model, wording, texts, 3.0, 1e-4, torch.full((2, 16), 0.5, dtype=torch.float64))
    assert torch.equal(codes, drawn)

    rows = wording.captions(texts)
    with torch.no_grad():
        conditional = code_logits(model, rows.ids_SL, rows.length_S, codes)
        empty = code_logits(model, wording.emptied(rows.ids_SL), rows.length_S, codes)
    assert torch.equal((empty + 3.0 * (conditional - empty)).argmax(-1), codes)
