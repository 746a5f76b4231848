"""The engine on one process: numbers, named copies, checkpoints of every kind of damage."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from srum_ds.engine.base import Settings, learning_rate
from srum_ds.engine.plain import PlainEngine
from tests.support.toy import COUNT, batch, plain, same, settings, toy, train, train_step, weights


def test_gradient_is_that_of_the_whole_batch_divided_by_the_count() -> None:
    """An outside check of the yardstick: one big batch through autograd, AdamW's first step by hand."""
    model = toy()
    ids, target = batch(0)
    losses = model("loss", ids, target)
    expected_loss = losses.sum() / COUNT
    expected_loss.backward()
    gradients = {
        name: parameter.grad
        for name, parameter in model.named_parameters()
        if name in model.trainable() and parameter.grad is not None
    }
    norm = float(torch.cat([gradient.flatten() for gradient in gradients.values()]).norm())
    engine = plain()
    loss, seen_norm = train_step(engine, 0)
    assert loss == pytest.approx(expected_loss.item(), rel=1e-6)
    assert seen_norm == pytest.approx(norm, rel=1e-5)
    # After one step AdamW has moved every weight by lr * (sign(gradient) + decay * weight).
    rate = 1e-2 / 3
    before, after = dict(toy().named_parameters()), weights(engine)
    for name, gradient in gradients.items():
        big = gradient.abs() > 1e-3
        moved = before[name] - after[name]
        expected = rate * (gradient.sign() + 0.01 * before[name])
        assert torch.allclose(moved[big], expected[big], atol=2e-6)


def test_warm_up_then_constant() -> None:
    constant = Settings(3.0, (0.9, 0.95), 1e-8, 0.0, 1.0, warmup_steps=3)
    assert [learning_rate(constant, step) for step in range(5)] == [1.0, 2.0, 3.0, 3.0, 3.0]
    assert learning_rate(replace(constant, warmup_steps=0), 0) == 3.0


def test_the_rate_falls_along_half_a_cosine_to_the_end_of_the_run() -> None:
    falling = Settings(4.0, (0.9, 0.95), 1e-8, 0.0, 1.0, warmup_steps=2, decay_steps=10)
    rates = [learning_rate(falling, step) for step in range(11)]
    assert rates[:3] == [2.0, 4.0, 4.0]
    assert rates[6] == pytest.approx(2.0), "half-way between the warm-up's end and the run's"
    assert rates[8] == pytest.approx(2 * (1 - math.sqrt(0.5)))
    assert rates[10] == pytest.approx(0.0)
    assert all(later <= earlier for earlier, later in zip(rates[1:], rates[2:], strict=False))


def test_engine_refuses_wrong_use() -> None:
    model = toy()
    with pytest.raises(ValueError, match="no such parameters in Toy: blocks.9"):
        PlainEngine.create(model, {"blocks.9"}, **settings())
    with pytest.raises(ValueError, match="nothing to train"):
        PlainEngine.create(model, set(), **settings())
    with pytest.raises(ValueError, match="no weights named 'old'; there are: live, ema"):
        engine = plain()
        engine.add_weights("ema")
        engine.update_weights("old", 0.5)


def test_plain_engine_named_copies() -> None:
    engine = plain(precision="bf16")
    engine.add_weights("old")
    start = weights(engine)
    train(engine, range(2))
    live = weights(engine)
    with engine.gathered("old") as module:
        assert not torch.is_grad_enabled()
        assert torch.equal(module.get_parameter("head.weight"), start["head.weight"].bfloat16())
    assert torch.equal(engine.module.get_parameter("head.weight"), live["head.weight"].bfloat16())
    assert same(weights(engine, "old"), start) and same(weights(engine), live)
