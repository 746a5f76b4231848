"""Show-o's checkpoint folders: what is refused and how, tied heads, and export in the released layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from srum_ds.common.errors import UserError
from srum_ds.models import family_of
from srum_ds.models.showo import magvit
from srum_ds.models.showo.adapter import load_showo
from srum_ds.models.showo.config import MagvitConfig, read_config
from srum_ds.models.showo.inspect import inspect_folder, inspection_text
from srum_ds.models.showo.sampling import MaskedSampling
from srum_ds.types import Prompt
from tests.support.tiny_showo import library_model, write_tiny_showo

PROMPT = [Prompt("p", "a red circle")]
SAMPLING = MaskedSampling(steps=3, guidance=1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_showo(tmp_path_factory.mktemp("showo"))


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def change(path: Path, **values: Any) -> None:
    told = json.loads(path.read_text())
    told.update(values)
    path.write_text(json.dumps({key: value for key, value in told.items() if value is not None}))


def change_weights(path: Path, work: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(path)
    work(tensors)
    save_file(tensors, path)


# ---- configuration


@pytest.mark.parametrize(
    ("file", "values", "words"),
    [
        ("config.json", {"llm_vocab_size": None}, "config.json: llm_vocab_size is not there"),
        ("config.json", {"num_vq_tokens": "16"}, "config.json: num_vq_tokens is '16'"),
        ("config.json", {"codebook_size": True}, "config.json: codebook_size is True"),
        ("config.json", {"num_vq_tokens": 15}, "num_vq_tokens is 15, expected a square"),
        ("config.json", {"vocab_size": 300}, "vocab_size is 300, but llm_vocab_size 265"),
        ("config.json", {"mask_token_id": 5}, "mask_token_id is 5, expected the last id 307"),
        ("config.json", {"w_clip_vit": True}, "through a CLIP tower, which is not supported"),
        ("config.json", {"max_text_len": 2}, "max_text_len is 2"),
        ("config.json", {"llm_model_path": "microsoft/phi-1_5"}, "the model microsoft/phi-1_5 of the Hugging Face hub"),
        ("llm/config.json", {"model_type": "llama"}, "model_type is 'llama', expected 'phi'"),
        ("llm/config.json", {"hidden_size": 30}, "hidden_size 30 is no multiple of num_attention_heads 4"),
        ("magvitv2/config.json", {"z_channels": 6, "codebook_dim": 6}, "codebook_size is 32, but codes of 6 bits"),
        ("magvitv2/config.json", {"codebook_dim": 4}, "codebook_dim is 4, but z_channels 5"),
        ("magvitv2/config.json", {"decoder_ch_mult": [1]}, "decoder_ch_mult has 1, .*expected as many everywhere"),
        ("magvitv2/config.json", {"ch": 40}, "magvitv2/config.json: ch is 40"),
    ],
)
def test_a_wrong_value_is_named(copy: Path, file: str, values: dict[str, Any], words: str) -> None:
    change(copy / file, **values)
    with pytest.raises(UserError, match=words):
        load_showo(copy)


def test_what_the_hub_calls_the_language_model_may_be_a_folder_of_that_name(copy: Path) -> None:
    change(copy / "config.json", llm_model_path="microsoft/phi-1_5")
    with pytest.raises(UserError, match="no weights") as refused:
        load_showo(copy)
    assert str(copy / "microsoft" / "phi-1_5") in str(refused.value)
    (copy / "microsoft").mkdir()
    (copy / "llm").rename(copy / "microsoft" / "phi-1_5")
    assert load_showo(copy).reader.config.llm_folder == copy / "microsoft" / "phi-1_5"


def test_a_picture_tokenizer_without_sizes_has_the_released_ones(copy: Path) -> None:
    change(copy / "config.json", codebook_size=8192, vocab_size=265 + 10 + 8192 + 1, mask_token_id=None)
    (copy / "magvitv2" / "config.json").write_text("{}")
    config = read_config(copy)
    assert config.magvit == MagvitConfig() and config.magvit.downsample == 16 and config.pixels == 64
    shutil.rmtree(copy / "magvitv2")
    with pytest.raises(UserError, match="Download config.json and the weights of showlab/magvitv2"):
        read_config(copy)


def test_pictures_are_rounded_as_the_release_rounds_them() -> None:
    # Of what is truncated to 8 bits, a last bit can be a level.
    torch.manual_seed(0)
    block, x = magvit._Attention(32), torch.randn(2, 32, 3, 3)
    with torch.no_grad():
        h = block.norm(x)
        q, k, v = (part(h).reshape(2, 32, 9) for part in (block.q, block.k, block.v))
        share = torch.nn.functional.softmax(torch.bmm(q.permute(0, 2, 1), k) * 32**-0.5, dim=2)
        seen = torch.bmm(v, share.permute(0, 2, 1)).reshape(2, 32, 3, 3)
        assert torch.equal(block(x), x + block.proj_out(seen))
        assert torch.equal(magvit._swish(x), x * torch.sigmoid(x))


def test_a_tokenizer_of_another_model_is_refused(copy: Path) -> None:
    change(copy / "config.json", llm_vocab_size=260, vocab_size=260 + 10 + 32 + 1, mask_token_id=None)
    with pytest.raises(UserError, match="reaches id 274, but config.json says llm_vocab_size 260"):
        load_showo(copy)


def test_norms_of_queries_and_keys_are_there_whatever_the_file_says(folder: Path) -> None:
    assert json.loads((folder / "llm" / "config.json").read_text())["qk_layernorm"] is False
    names = dict(load_showo(folder).module.named_parameters())
    assert "showo.model.layers.1.self_attn.k_layernorm.weight" in names


# ---- weights


def test_pickled_weights_are_not_opened(copy: Path) -> None:
    for inside in (copy, copy / "magvitv2"):
        weights = inside / "pytorch_model.safetensors"
        kept = weights.read_bytes()
        weights.rename(inside / "pytorch_model.bin")
        with pytest.raises(UserError, match="pytorch_model.bin alone, which is not read.*weights_only=True"):
            load_showo(copy)
        weights.write_bytes(kept)
    load_showo(copy)


def test_missing_and_strange_tensors_are_listed(copy: Path) -> None:
    path = copy / "pytorch_model.safetensors"
    name = "showo.model.layers.0.self_attn.q_layernorm.bias"
    change_weights(path, lambda tensors: tensors.pop(name))
    with pytest.raises(UserError, match=f"missing: {name}"):
        load_showo(copy)
    change_weights(path, lambda tensors: tensors.update({name: torch.zeros(8), "showo.extra": torch.zeros(1)}))
    with pytest.raises(UserError, match="unexpected: showo.extra"):
        load_showo(copy)
    change_weights(path, lambda tensors: tensors.pop("showo.extra"))
    load_showo(copy)
    inside = copy / "magvitv2" / "pytorch_model.safetensors"
    change_weights(inside, lambda tensors: tensors.update({"encoder.conv_in.bias": torch.zeros(5)}))
    with pytest.raises(UserError, match=r"encoder.conv_in.bias is \[5\], expected \[32\]"):
        load_showo(copy)


def test_a_shared_head_stays_shared(tmp_path: Path) -> None:
    folder = write_tiny_showo(tmp_path / "tied", phi={"tie_word_embeddings": True})
    model = load_showo(folder)
    phi = model.module.showo
    assert phi.lm_head.weight is phi.model.embed_tokens.weight
    name = "showo.model.embed_tokens.weight"
    assert name in model.trainable("transformer") and "showo.lm_head.weight" not in model.trainable("transformer")
    changed = phi.model.embed_tokens.weight.detach() + 1
    model.export(tmp_path / "out", [name], [(name, changed)])
    again = load_showo(tmp_path / "out")
    assert torch.equal(again.module.showo.lm_head.weight, changed)
    assert "showo.lm_head.weight" not in load_file(tmp_path / "out" / "pytorch_model.safetensors")


# ---- export


def test_what_is_exported_is_the_released_layout(copy: Path, tmp_path: Path) -> None:
    """Also where weights had another file's name, and the language model stood elsewhere."""
    (copy / "pytorch_model.safetensors").rename(copy / "model.safetensors")
    elsewhere = Path((copy / "llm").rename(tmp_path / "phi"))
    change(copy / "config.json", llm_model_path=str(elsewhere))
    model = load_showo(copy)
    names = model.trainable("transformer")
    parameters = dict(model.module.named_parameters())
    out = tmp_path / "out"
    model.export(out, names, ((name, parameters[name] * 0.5) for name in names), torch.bfloat16)
    drawn = model.generate(PROMPT, [("k", 0)], (4, 4), SAMPLING)[0]
    shutil.rmtree(copy)
    shutil.rmtree(elsewhere)
    assert family_of(out).kind == "showo"
    assert {path.name for path in out.iterdir()} == {"config.json", "llm", "magvitv2", "pytorch_model.safetensors"}
    with safe_open(str(out / "pytorch_model.safetensors"), framework="pt") as stored:
        keys = set(stored.keys())
        assert all(stored.get_slice(key).get_dtype() == "BF16" for key in keys)
    assert keys == {f"showo.{name}" for name in library_model(out).state_dict()}
    assert not torch.equal(load_showo(out).generate(PROMPT, [("k", 0)], (4, 4), SAMPLING)[0], drawn)


def test_an_adapter_is_the_librarys_too(folder: Path, tmp_path: Path) -> None:
    """peft puts the exported adapter on transformers' class, which then computes what the merged folder does."""
    from peft import PeftModel

    model = load_showo(folder)
    model.add_lora(2, 4.0, ("q_proj", "fc2"), 0)
    names = model.trainable("lora")
    assert len(names) == 2 * 2 * 2
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.module.named_parameters():
        if name in names:
            parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    parameters = dict(model.module.named_parameters())
    out = tmp_path / "out"
    model.export(out, names, ((name, parameters[name]) for name in names))
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = library_model(folder)(input_ids=ids).logits
        merged = library_model(out)(input_ids=ids).logits
        adapted = PeftModel.from_pretrained(library_model(folder), str(out / "lora"))(input_ids=ids).logits
    torch.testing.assert_close(adapted, merged, atol=1e-4, rtol=1e-4)
    assert float((merged - before).abs().max()) > 0.1


# ---- inspect


def test_what_a_folder_holds_without_its_weights(copy: Path) -> None:
    model = load_showo(copy)
    for inside in (copy, copy / "magvitv2"):
        (inside / "pytorch_model.safetensors").unlink()
    facts = inspect_folder(copy, lora_rank=2)
    assert facts["parameters"] == sum(p.numel() for p in model.module.parameters())
    parts = facts["parts"]
    assert parts["embeddings"] == 308 * 32 and parts["head"] == 308 * 33
    assert parts["picture_tokenizer"] == sum(p.numel() for p in model.reader.magvit.parameters())
    assert facts["picture"] == {"pixels": 8, "codes": 16, "codebook": 32, "prompt_tokens": 44}
    assert facts["vocabulary"] == {"text": 265, "first_code": 275, "mask": 307, "size": 308}
    # Each block: q 32 + 32, k and v 32 + 16 each, dense 64, fc1 and fc2 80 each, twice for its rank.
    assert facts["trainable"] == {"transformer": facts["parameters"], "lora": 2 * 2 * (64 + 48 + 48 + 64 + 80 + 80)}
    assert "picture: codebook                           32" in inspection_text(facts)
