"""What designs of a library share: buffers and ties survive the meta device, every parameter is filled, and export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from srum_ds.common.errors import UserError
from srum_ds.models.library import FolderWeights, Part, export_adapted, fill, library_names, meta_module
from srum_ds.models.lora import inject

LLAMA = {
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
IDS = torch.tensor([[1, 5, 7, 2]])


def llama(tied: bool) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(**LLAMA, tie_word_embeddings=tied)  # type: ignore[arg-type]
    return LlamaForCausalLM(config).eval()


def opened(folder: Path) -> tuple[LlamaForCausalLM, FolderWeights]:
    config = LlamaConfig.from_pretrained(folder)
    module = meta_module(lambda: LlamaForCausalLM(config)).eval()
    weights = FolderWeights(folder).settle_ties(module)
    weights.check(module)
    fill(module, weights.stored())
    return module, weights


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_comes_back_as_the_library_loads_it(tmp_path: Path, tied: bool) -> None:
    """Frequencies of rotary positions stand in no file, and a shared head only once."""
    model = llama(tied)
    model.save_pretrained(tmp_path)
    module, _ = opened(tmp_path)
    assert (module.lm_head.weight is module.model.embed_tokens.weight) == tied
    assert torch.equal(module(IDS).logits, model(IDS).logits)
    assert module.model.rotary_emb.inv_freq.dtype == torch.float32
    assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def test_a_file_that_stores_both_of_a_tie_otherwise_wins_over_the_flag(tmp_path: Path) -> None:
    """As transformers 5 reads it: the configuration says tied, the file holds two tensors."""
    model = llama(tied=False)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    module, _ = opened(tmp_path)
    assert torch.equal(module(IDS).logits, model(IDS).logits)
    assert not torch.equal(module.lm_head.weight, module.model.embed_tokens.weight)


def test_a_tie_that_is_stored_twice_is_written_twice(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    llama(tied=True).save_pretrained(source)
    stored = load_file(source / "model.safetensors")
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    stored[head] = stored[embedding].clone()
    save_file(stored, source / "model.safetensors")
    module, weights = opened(source)
    assert module.lm_head.weight is module.model.embed_tokens.weight
    assert {name for name, _ in weights.stored()} == {name for name, _ in module.named_parameters()}
    weights.export(target, [embedding], [(embedding, torch.full((20, 8), 3.0))])
    written = load_file(target / "model.safetensors")
    assert torch.equal(written[head], written[embedding]) and bool((written[head] == 3).all())


def test_a_parameter_that_nothing_fills_is_an_error(tmp_path: Path) -> None:
    model = llama(tied=False)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    norm = stored.pop("model.norm.weight")
    save_file(stored | {"model.nrom.weight": norm}, tmp_path / "model.safetensors")
    module = meta_module(lambda: LlamaForCausalLM(model.config))
    with pytest.raises(UserError, match=r"missing: model\.norm\.weight; unexpected: model\.nrom\.weight"):
        FolderWeights(tmp_path).check(module)
    with pytest.raises(UserError, match=r"no stored tensor fills 1 of the model's parameters: model\.norm\.weight"):
        fill(module, FolderWeights(tmp_path).stored())
    save_file(stored | {"model.norm.weight": norm[:-1].clone()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"misshapen: model\.norm\.weight is \[7\], expected \[8\]"):
        FolderWeights(tmp_path).check(module)


def test_pickled_weights_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is not read, since opening it can run code"):
        list(FolderWeights(tmp_path).stored())


def qwen() -> Qwen2_5_VLForConditionalGeneration:
    text = dict(LLAMA, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 0]}, vocab_size=40)
    vision = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 8}
    ids = {"image_token_id": 30, "video_token_id": 31, "vision_start_token_id": 32, "vision_end_token_id": 33}
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids))  # type: ignore[arg-type]


def test_files_that_use_other_names_are_mapped_both_ways(tmp_path: Path) -> None:
    """Qwen2.5-VL's released files say ``visual.*`` and ``model.layers.*`` for names that its module has otherwise."""
    model = qwen()
    model.save_pretrained(tmp_path / "whole" / "vlm")
    (tmp_path / "whole" / "model_index.json").write_text("{}")
    stored = load_file(tmp_path / "whole" / "vlm" / "model.safetensors")
    names = dict(model.named_parameters())
    assert len(stored.keys() & names.keys()) < len(names) / 2
    part = Part("vlm", "vlm.", name_of=library_names(model))
    module = nn.ModuleDict({"vlm": meta_module(lambda: Qwen2_5_VLForConditionalGeneration(model.config))})
    weights = FolderWeights(tmp_path / "whole", (part,)).settle_ties(module)
    weights.check(module)
    fill(module, weights.stored())
    for name, parameter in names.items():
        assert torch.equal(module["vlm"].get_parameter(name), parameter)

    changed = "vlm.model.visual.blocks.0.attn.proj.bias"
    weights.export(tmp_path / "out", [changed], [(changed, torch.full((8,), 5.0))])
    written = load_file(tmp_path / "out" / "vlm" / "model.safetensors")
    assert written.keys() == stored.keys()
    moved = [key for key in stored if not torch.equal(stored[key], written[key])]
    assert moved == ["visual.blocks.0.attn.proj.bias"]
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "out" / "vlm", dtype=torch.float32)
    assert bool((again.get_parameter(changed.removeprefix("vlm.")) == 5).all())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"vlm", "model_index.json"}


def test_an_adapter_is_merged_and_stands_beside_under_the_librarys_names(tmp_path: Path) -> None:
    from peft import PeftModel

    model = llama(tied=False)
    model.save_pretrained(tmp_path / "source")
    module = nn.ModuleDict({"llm": meta_module(lambda: LlamaForCausalLM(model.config))})
    weights = FolderWeights(tmp_path / "source", (Part(prefix="llm."),))
    fill(module, weights.stored())
    binding = inject(module, ["llm.model.layers.0.self_attn.q_proj"], 2, 4.0, 0)
    adapter = {name: p for name, p in module.named_parameters() if "lora_" in name}
    torch.manual_seed(1)
    for parameter in adapter.values():
        parameter.data.normal_()
    pairs: Iterator[tuple[str, Tensor]] = ((name, p.detach()) for name, p in adapter.items())
    export_adapted(weights, tmp_path / "out", binding, pairs, None, lambda name: name.removeprefix("llm."))
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    expected = module["llm"](IDS).logits
    torch.testing.assert_close(merged(IDS).logits, expected)
    beside = PeftModel.from_pretrained(model, tmp_path / "out" / "lora")
    torch.testing.assert_close(beside(IDS).logits, expected)
    assert not torch.equal(llama(tied=False)(IDS).logits, expected)


def test_two_keys_of_one_name_are_refused_before_one_is_lost(tmp_path: Path) -> None:
    module = nn.Linear(2, 2, bias=False)
    save_file({"weight": torch.zeros(2, 2), "model.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    part = Part(name_of=lambda key: key.removeprefix("model."))
    with pytest.raises(UserError, match="model.weight and weight are both weight"):
        FolderWeights(tmp_path, (part,)).check(module)
