"""LoRA: where it binds, that it changes nothing untrained or switched off, and what is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.config.schema import LoraConfig
from srum_ds.engine.plain import PlainEngine
from srum_ds.models.bagel.adapter import BagelAdapter, load_bagel
from srum_ds.models.bagel.inspect import inspect_folder
from srum_ds.models.flow import FlowSampling
from srum_ds.models.lora import DEFAULT_RANK, is_adapter, match_targets, merged
from srum_ds.types import Prompt
from tests.support.tiny_models import TINY, random_picture, write_tiny_bagel

BOTH_EXPERTS = ("q_proj", "*.o_proj", "mlp.down_proj", "*_moe_gen", "mlp_moe_gen.*", "llm2vae")
NAMES = ("a.layers.0.q_proj", "a.layers.0.mlp.up", "a.layers.1.q_proj", "a.layers.1.mlp.up", "head")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bagel(tmp_path_factory.mktemp("bagel"))


def adapted(folder: Path, targets: tuple[str, ...] = (), seed: int = 0, rank: int = 4) -> BagelAdapter:
    model = load_bagel(folder)
    model.add_lora(rank, 8.0, targets, seed)
    return model


def judged(model: BagelAdapter) -> tuple[Tensor, Tensor]:
    """Everything the model can say about two pictures: answer log-probabilities, and a text's."""
    pictures = [random_picture(28, 42, 0), random_picture(14, 14, 1)]
    answers = model.answer_logprobs(pictures, ["is it red?", "a dog"], ["yes", "no", "red"])
    return answers, model.text_logprob(pictures, ["a red dog", "no"])


def drawn(model: BagelAdapter) -> Tensor:
    keys = [("test", 0), ("test", 1)]
    prompts = [Prompt("0", "a red dog"), Prompt("1", "yes")]
    return model.generate(prompts, keys, (2, 2), FlowSampling(num_timesteps=4, text_scale=2.0))[0]


def engine_of(model: BagelAdapter, precision: str = "fp32") -> PlainEngine:
    return PlainEngine.create(
        model.module,
        set(model.trainable("lora")),
        lr=1e-2,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,
        warmup_steps=0,
        precision=precision,
        seed=0,
    )


def train(engine: PlainEngine, model: BagelAdapter, steps: int) -> None:
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        ids = model.reader.tokenizer.segment("a red dog")
        x = torch.randn(1, 2, 4, TINY.token_channels, generator=generator)
        t = torch.tensor([[0.3, 0.8]])
        dropped = torch.tensor([[False, True]])
        v = engine(ids[None], torch.tensor([len(ids)]), dropped, x, t, torch.tensor([2, 2]))
        engine.backward((v - x).square().mean(-1).sum(), 8.0, micro_batches=1)
        assert engine.step() > 0


@pytest.fixture(scope="module")
def trained(folder: Path) -> tuple[BagelAdapter, PlainEngine]:
    """An adapter on both experts after five steps, with a copy of its weights from before."""
    model = adapted(folder, BOTH_EXPERTS)
    engine = engine_of(model)
    engine.add_weights("reference")
    train(engine, model, 5)
    return model, engine


# ---- where it binds


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        (["q_proj"], [0, 2]),
        (["mlp.up", "head"], [1, 3, 4]),
        (["a.layers.1.*"], [2, 3]),
        (["layers.?.q_proj", "q_proj"], [0, 2]),
        (["*"], [0, 1, 2, 3, 4]),
    ],
)
def test_targets_are_names_their_ends_or_patterns(targets: list[str], expected: list[int]) -> None:
    assert match_targets(NAMES, targets) == tuple(NAMES[i] for i in expected)


@pytest.mark.parametrize("wrong", ["q_pro", "proj", "p_proj", "Q_PROJ", "layers.1"])
def test_a_target_without_a_module_is_an_error_that_names_the_nearest(wrong: str) -> None:
    with pytest.raises(UserError, match=f"{wrong}.*nearest") as caught:
        match_targets(NAMES, ["head", wrong])
    if "pro" in wrong:
        assert "q_proj" in str(caught.value)


@pytest.mark.parametrize(
    "frozen", ["fc1", "vit_model.*", "connector.*", "embed_tokens", "norm", "vit_pos_embed", "lm_head"]
)
def test_what_stays_frozen_takes_no_adapter(folder: Path, frozen: str) -> None:
    with pytest.raises(UserError, match=r"lora\.targets"):
        load_bagel(folder).add_lora(4, 8.0, [frozen], 0)


def test_a_name_that_vision_and_language_share_means_the_language_model(folder: Path) -> None:
    model = adapted(folder, ("q_proj",))
    assert model.lora is not None
    # No loss reaches the queries of text in the last block.
    assert len(model.lora.modules) == TINY.llm.num_hidden_layers - 1
    assert all(name.startswith("language_model.") for name in model.lora.modules)


def test_default_targets_are_the_generation_experts_projections(folder: Path) -> None:
    model = adapted(folder)
    assert model.lora is not None
    assert len(model.lora.modules) == 7 * TINY.llm.num_hidden_layers
    assert all("_moe_gen" in name for name in model.lora.modules)
    parameters = dict(model.module.named_parameters())
    names = model.trainable("lora")
    assert names == [name for name in parameters if is_adapter(name)]
    assert sum(parameters[name].numel() for name in names) == model.lora.parameters
    assert {parameters[name].dtype for name in names} == {torch.float32}


def test_inspect_counts_the_default_adapter(folder: Path) -> None:
    assert LoraConfig().rank == DEFAULT_RANK
    model = adapted(folder, LoraConfig().targets, rank=LoraConfig().rank)
    assert model.lora is not None
    assert inspect_folder(folder)["trainable"]["lora"] == model.lora.parameters


def test_initial_values_are_a_function_of_seed_and_module(folder: Path) -> None:
    few = dict(adapted(folder, ("layers.1.self_attn.q_proj_moe_gen",)).module.named_parameters())
    many = dict(adapted(folder).module.named_parameters())
    other = dict(adapted(folder, seed=1).module.named_parameters())
    names = [name for name in many if "lora_A" in name]
    shared = [name for name in few if "lora_A" in name]
    assert all(torch.equal(few[name], many[name]) for name in shared)
    assert not any(torch.equal(other[name], many[name]) for name in names)
    assert len({tuple(many[name].flatten()[:4].tolist()) for name in names}) == len(names)
    for name in names:
        bound = many[name].shape[1] ** -0.5
        assert 0.9 * bound < many[name].abs().max() <= bound


# ---- what it changes


def test_an_untrained_adapter_changes_nothing(folder: Path) -> None:
    base, model = load_bagel(folder), adapted(folder, BOTH_EXPERTS)
    assert torch.equal(drawn(base), drawn(model))
    for ours, theirs in zip(judged(model), judged(base), strict=True):
        assert torch.equal(ours, theirs)


def test_after_training_the_judge_is_the_untrained_model_bit_for_bit(
    folder: Path, trained: tuple[BagelAdapter, PlainEngine]
) -> None:
    model, engine = trained
    base = load_bagel(folder)
    with engine.gathered():
        assert not torch.equal(drawn(model), drawn(base))
        # The adapter sits on understanding too: switched on, it would judge otherwise.
        assert not torch.equal(judged(model)[0], judged(base)[0])
        before = drawn(model)
        with model.judging():
            for ours, theirs in zip(judged(model), judged(base), strict=True):
                assert torch.equal(ours, theirs)
        assert torch.equal(drawn(model), before)
    train_flags = {name: p.requires_grad for name, p in model.module.named_parameters()}
    assert {name for name, flag in train_flags.items() if flag} == set(model.trainable("lora"))


def test_in_bf16_the_judge_is_the_untrained_model_and_the_masters_are_not_rounded(folder: Path) -> None:
    model, base = adapted(folder, BOTH_EXPERTS), load_bagel(folder, dtype=torch.bfloat16)
    start = {name: p.clone() for name, p in model.module.named_parameters() if is_adapter(name)}
    engine = engine_of(model, "bf16")
    masters: dict[str, Any] = dict(engine.consolidate())
    assert all(torch.equal(masters[name], start[name]) for name in start)
    train(engine, model, 2)
    with engine.gathered(), model.judging():
        for ours, theirs in zip(judged(model), judged(base), strict=True):
            assert torch.equal(ours, theirs)


def test_the_switch_comes_back_after_an_error(trained: tuple[BagelAdapter, PlainEngine]) -> None:
    model, _ = trained
    before = drawn(model)
    with pytest.raises(KeyError), model.judging():
        raise KeyError
    assert torch.equal(drawn(model), before)


def test_the_reference_is_the_model_with_lora_off(folder: Path, trained: tuple[BagelAdapter, PlainEngine]) -> None:
    model, engine = trained
    with engine.gathered("reference"):
        assert torch.equal(drawn(model), drawn(load_bagel(folder)))


def test_every_adapted_module_learns_and_nothing_else(folder: Path, trained: tuple[BagelAdapter, PlainEngine]) -> None:
    model, _ = trained
    start = dict(adapted(folder, BOTH_EXPERTS).module.named_parameters())
    for name, parameter in model.module.named_parameters():
        assert torch.equal(parameter, start[name]) != is_adapter(name), name


def test_mode_lora_needs_an_adapter_and_takes_one(folder: Path) -> None:
    model = load_bagel(folder)
    with pytest.raises(ValueError, match="add_lora"):
        model.trainable("lora")
    model.add_lora(2, 2.0, [], 0)
    with pytest.raises(ValueError, match="already"):
        model.add_lora(2, 2.0, [], 0)
    assert model.judge_unchanged_by("lora")


# ---- what is exported


def test_merging_by_hand() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.bfloat16)
    result = merged(weight, torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [0.5]]), 0.5)
    assert result.dtype == torch.float32
    assert result.tolist() == [[2.0, 1.0], [3.25, 3.75]]


@pytest.fixture(scope="module")
def exported(trained: tuple[BagelAdapter, PlainEngine], tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, engine = trained
    target = tmp_path_factory.mktemp("export") / "model"
    tensors: Any = engine.consolidate()
    model.export(target, model.trainable("lora"), tensors, torch.float32)
    return target


def test_the_export_is_the_merged_model_in_the_released_layout(
    folder: Path, trained: tuple[BagelAdapter, PlainEngine], exported: Path
) -> None:
    model, _ = trained
    assert model.lora is not None
    before, after = load_file(folder / "ema.safetensors"), load_file(exported / "ema.safetensors")
    assert before.keys() == after.keys()
    touched = {f"{name}.weight" for name in model.lora.modules}
    parameters = dict(model.module.named_parameters())
    for name, value in after.items():
        if name not in touched:
            assert torch.equal(value, before[name]), name
            continue
        module = name.removesuffix(".weight")
        down, up = (parameters[f"{module}.{part}.default.weight"] for part in ("lora_A", "lora_B"))
        assert torch.allclose(value, before[name] + 2.0 * up @ down, atol=1e-6), name
    again = load_bagel(exported)
    assert torch.allclose(drawn(again), drawn(model), atol=1e-5)
    assert torch.allclose(judged(again)[0], judged(model)[0], atol=1e-5)


def test_peft_reads_the_adapter(folder: Path, trained: tuple[BagelAdapter, PlainEngine], exported: Path) -> None:
    model, _ = trained
    config = json.loads((exported / "lora/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8.0, "LORA")
    base = load_bagel(folder)
    PeftModel.from_pretrained(base.module, exported / "lora")
    assert torch.equal(drawn(base), drawn(model))


def test_saving_writes_the_same_folder(
    trained: tuple[BagelAdapter, PlainEngine], exported: Path, tmp_path: Path
) -> None:
    model, _ = trained
    tensors = dict(model.module.named_parameters())
    names = model.trainable("lora")
    model.export(tmp_path / "saved", names, [(name, tensors[name]) for name in names])
    for name in ("ema.safetensors", "lora/adapter_model.safetensors"):
        ours, theirs = load_file(tmp_path / "saved" / name), load_file(exported / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
