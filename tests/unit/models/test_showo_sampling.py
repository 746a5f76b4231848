"""Show-o's sampler, training masks, quantiser and sequences by values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from srum_ds.common.errors import UserError
from srum_ds.models.showo.layout import (
    answer_text,
    drawing_mask,
    looking_mask,
    looking_rows,
    picture_rows,
    prompt_row,
    question_text,
)
from srum_ds.models.showo.magvit import codes_of, signs_of
from srum_ds.models.showo.sampling import (
    MASKED,
    MaskedSampling,
    SamplerStep,
    code_of,
    guide,
    gumbel,
    hidden_again,
    masked_in_training,
    noise,
    staying_masked,
    unmask,
)
from srum_ds.models.showo.tokenizer import Vocabulary

WORDS = Vocabulary(pad=90, bos=91, eos=92, t2i=93, mmu=94, soi=95, eoi=96, first_code=100, codes=8, mask=108)


def uniform_of(gumbel_noise: Tensor) -> Tensor:
    """The uniform number whose Gumbel noise is given."""
    return torch.exp(-torch.exp(-gumbel_noise))


# ---- the sampler


def test_how_many_codes_stay_masked() -> None:
    # 16 cos(pi / 8) = 14.8, 16 cos(pi / 4) = 11.3, 16 cos(3 pi / 8) = 6.1; at the end the cosine is just below 0.
    assert [staying_masked(step, 4, 16) for step in range(4)] == [14, 11, 6, -1]


def test_how_many_codes_a_training_view_masks() -> None:
    # 4 cos(pi / 4) = 2.83, 4 cos(pi / 3) = 2, 4 cos(0.45 pi) = 0.63; at least one.
    time = torch.tensor([0.0, 0.5, 2 / 3, 0.9, 1.0])
    assert masked_in_training(time, 4).tolist() == [4, 3, 2, 1, 1]
    assert masked_in_training(torch.tensor([[0.5], [1.0]]), 16).tolist() == [[11], [1]]


def test_a_uniform_number_is_a_code() -> None:
    shares = torch.tensor([0.25, 0.25, 0.5]).expand(5, 3)
    assert code_of(shares, torch.tensor([0.0, 0.25, 0.49, 0.5, 0.999])).tolist() == [0, 1, 1, 2, 2]
    # Shares that do not quite reach 1 give the last code, not one that does not exist.
    assert code_of(torch.tensor([[0.25, 0.5]]), torch.tensor([0.9])).tolist() == [1]


def test_guidance_leads_away_from_no_prompt() -> None:
    guided = guide(torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0]), 0.5)
    assert guided.tolist() == [2.5, -0.5]


def test_gumbel_noise() -> None:
    assert float(gumbel(torch.tensor(math.exp(-1)))) == pytest.approx(0.0, abs=1e-6)
    torch.testing.assert_close(gumbel(uniform_of(torch.tensor([-1.5, 2.0]))), torch.tensor([-1.5, 2.0]))
    assert bool(gumbel(torch.tensor([0.0, 1.0 - 2**-24])).isfinite().all())


@pytest.mark.parametrize(
    ("count", "hidden"),
    [
        (2, [False, True, False, True]),
        (1, [False, True, False, False]),
        (9, [False, True, True, True]),  # at most one fewer than before
        (-1, [False, True, False, False]),  # at least one
    ],
)
def test_the_least_likely_codes_stay_masked(count: int, hidden: list[bool]) -> None:
    chance = torch.tensor([[0.9, 0.1, 0.5, 0.3]])
    unknown = torch.ones(1, 4, dtype=torch.bool)
    assert hidden_again(chance, unknown, torch.full((1, 4), 0.5), 0.0, count).tolist() == [hidden]


def test_what_is_known_stays_known() -> None:
    chance = torch.tensor([[0.9, 0.2, 1e-9, 0.3]])
    unknown = torch.tensor([[True, True, False, False]])
    none = torch.full((1, 4), 0.5)
    assert hidden_again(chance, unknown, none, 1.0, 3).tolist() == [[False, True, False, False]]
    # The last unknown code stays masked at the end of a step, whatever it is.
    last = torch.tensor([[True, False, False, False]])
    assert hidden_again(chance, last, none, 1.0, 3).tolist() == [[True, False, False, False]]


def test_noise_can_outweigh_likelihood_by_the_temperature() -> None:
    chance, unknown = torch.tensor([[0.9, 0.1]]), torch.ones(1, 2, dtype=torch.bool)
    uniform = uniform_of(torch.tensor([[-3.0, 0.0]]))
    # log 0.9 - 3 < log 0.1 at temperature 1, log 0.9 - 1.5 > log 0.1 at temperature 1/2.
    assert hidden_again(chance, unknown, uniform, 1.0, 1).tolist() == [[True, False]]
    assert hidden_again(chance, unknown, uniform, 0.5, 1).tolist() == [[False, True]]


def drawn(shares_T: list[float], gumbel_T: list[float], steps: int, temperature: float = 1.0) -> list[list[int]]:
    """What is known before each step, where code 0 has these shares and is always the one drawn."""
    shares = torch.tensor(shares_T)
    probability = torch.stack([shares, 1 - shares], dim=-1)[None]
    uniform = torch.zeros(1, 2, steps, len(shares_T))
    uniform[:, 1] = uniform_of(torch.tensor(gumbel_T))
    trace: list[SamplerStep] = []
    codes = unmask(lambda seen: probability.log(), uniform, MaskedSampling(steps, 0.0, temperature), trace)
    assert codes.tolist() == [[0] * len(shares_T)]
    return [step.seen_NT[0].tolist() for step in trace]


def test_the_temperature_compounds() -> None:
    """Temperatures of four steps: 3/4, then 3/8 (not 1/2), 3/32, 0.

    Before the second step code 0 is known. At 3/8 log 0.9 - 2.6 * 3/8 = -1.08 is above log 0.3 = -1.20, so that code 1
    follows; at 1/2 it would be -1.41, and code 2.
    """
    shares, gumbel_T = [0.97, 0.9, 0.3, 0.05], [0.0, -2.6, 0.0, 0.0]
    before = drawn(shares, gumbel_T, 4)
    assert before == [[-1] * 4, [0, -1, -1, -1], [0, 0, -1, -1], [0, 0, 0, -1]]
    # Twice the temperature: 3/4 at the second step, where code 2 is first.
    assert drawn(shares, gumbel_T, 4, 2.0)[2] == [0, -1, 0, -1]


def test_the_last_draw_is_what_is_returned() -> None:
    """What is still masked before the last step is drawn anew in it; what is known is kept."""
    probability = torch.tensor([[[0.75, 0.25], [0.5, 0.5]]])
    uniform = torch.zeros(1, 2, 2, 2)
    uniform[0, 0, 1] = 0.9
    trace: list[SamplerStep] = []
    codes = unmask(lambda seen: probability.log(), uniform, MaskedSampling(2, 0.0, 0.0), trace)
    assert trace[1].seen_NT.tolist() == [[0, MASKED]]
    assert codes.tolist() == [[0, 1]]


def test_a_picture_of_one_code_is_drawn() -> None:
    probability = torch.tensor([[[0.5, 0.5]]])
    assert unmask(lambda seen: probability.log(), torch.full((1, 2, 3, 1), 0.6), MaskedSampling(3)).tolist() == [[1]]


def test_noise_belongs_to_the_picture() -> None:
    together = noise([("a", 1), ("b", 2)], 3, 5)
    assert together.shape == (2, 2, 3, 5)
    assert torch.equal(noise([("b", 2)], 3, 5)[0], together[1])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"guidance": -1.0}, {"temperature": float("nan")}])
def test_a_wrong_setting_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"the sampler's {next(iter(wrong))} is"):
        MaskedSampling(**wrong)  # type: ignore[arg-type]


# ---- the quantiser


def test_codes_are_signs_most_significant_first() -> None:
    latent = torch.tensor([[1.0, -2.0, 0.5], [-0.1, 0.0, 0.1]]).T.reshape(1, 3, 1, 2)
    assert codes_of(latent).tolist() == [[0b101, 0b001]]
    assert signs_of(torch.tensor([[5, 1]]), 3, (1, 2))[0, :, 0].T.tolist() == [[1, -1, 1], [-1, -1, 1]]


def test_codes_lie_row_by_row() -> None:
    codes = torch.arange(6)[None]
    signs = signs_of(codes, 3, (2, 3))
    assert signs[0, :, 1, 0].tolist() == [-1, 1, 1]  # the first of the second row: 3
    assert torch.equal(codes_of(signs), codes)


# ---- sequences


def test_prompts_are_padded_on_the_left_and_cut_before_their_end() -> None:
    assert prompt_row([1, 2], WORDS, 6) == [90, 90, 93, 91, 1, 2, 92]
    assert prompt_row([91, 1], WORDS, 3) == [93, 91, 1, 92]
    assert prompt_row([], WORDS, 3) == [90, 93, 91, 92]
    assert prompt_row([1, 2, 3, 4], WORDS, 4) == [93, 91, 1, 2, 92]


def test_a_picture_as_ids() -> None:
    assert picture_rows(torch.tensor([[0, MASKED, 7]]), WORDS).tolist() == [[95, 100, 108, 107, 96]]


def test_what_a_drawing_sequence_sees() -> None:
    pad = torch.tensor([[True, False, False, False, False]])
    assert drawing_mask(pad, 2)[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 1, 1, 1, 1],
        [0, 1, 1, 1, 1],
    ]


def test_texts_behind_one_picture_do_not_see_each_other() -> None:
    rows = looking_rows(torch.tensor([[3]]), [[1, 2], [4]], [0, 0], WORDS)
    assert rows.ids_BL.tolist() == [[94, 95, 103, 96, 1, 2, 4]]
    assert rows.position_BL.tolist() == [[0, 1, 2, 3, 4, 5, 4]]
    assert rows.places == ((0, range(4, 6)), (0, range(6, 7)))
    assert looking_mask(rows.position_BL, rows.text_BL)[0].int().tolist() == [
        *[[1, 1, 1, 1, 0, 0, 0]] * 4,
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0, 0, 1],
    ]


def test_questions_and_answers_are_wrapped_as_released() -> None:
    assert question_text("Is it?") + answer_text("Yes") == "USER: \nIs it? ASSISTANT: Yes"
    assert answer_text(" Yes") == " Yes"
