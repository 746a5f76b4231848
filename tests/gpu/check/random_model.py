"""BAGEL of random weights, made on the device: the widths of the released model, as many layers as are wanted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from srum_ds.models.bagel.adapter import BagelAdapter
from srum_ds.models.bagel.config import BagelConfig, read_config
from srum_ds.models.bagel.costs import BagelCosts
from srum_ds.models.bagel.latents import Autoencoder
from srum_ds.models.bagel.model import Bagel
from srum_ds.models.bagel.reader import Reader
from srum_ds.models.bagel.sampling import guide
from srum_ds.models.bagel.tokenizer import BagelTokenizer
from srum_ds.models.flow import FlowSampling
from srum_ds.types import Prompt, TrainView
from tests.gpu.check.measuring import Where
from tests.support.paths import MODEL

PROMPT = "a red book and a yellow vase"
"""For the embedded model's tokenizer, which writes it in a dozen tokens or so."""


def configuration(layers: int, where: Where) -> BagelConfig:
    """The released model's widths with so many layers; in a rehearsal the embedded model's, with two."""
    if where.rehearse:
        tiny = read_config(MODEL)
        return replace(tiny, llm=replace(tiny.llm, num_hidden_layers=2))
    full = BagelConfig()
    return replace(full, llm=replace(full.llm, num_hidden_layers=layers))


@dataclass
class RandomModel:
    """model: of random weights in bf16 (fp32 in a rehearsal). grid: latent tokens of its largest square image."""

    config: BagelConfig
    model: BagelAdapter
    costs: BagelCosts
    where: Where

    @property
    def module(self) -> Bagel:
        return self.model.module

    @property
    def grid(self) -> tuple[int, int]:
        return self.config.max_latent_size, self.config.max_latent_size

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of that image."""
        side = self.config.max_latent_size * self.config.pixels_per_token
        return side, side

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def random(self, *shape: int) -> Tensor:
        """Normally distributed numbers in float32."""
        return torch.randn(*shape, device=self.where.device)

    # ---- one sampler step

    def sampler_step(self, images: int) -> SamplerStep:
        """A guided step of so many images of one prompt, planned."""
        return SamplerStep(self, images)

    def step_flops(self, images: int) -> float:
        """FLOPs of a guided sampler step."""
        two, one = (
            self.costs.draw_flops(PROMPT, images, self.size, replace(GUIDED, num_timesteps=points)) for points in (3, 2)
        )
        return two - one

    # ---- one training pass

    def train_generation(self) -> None:
        """From now on the generation half has gradients, as in mode ``generation``."""
        names = set(self.model.trainable("generation"))
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(name in names)

    def training_pass(self, images: int, views: int) -> TrainingPass:
        """Forward and backward over ``views`` noised copies of each image."""
        return TrainingPass(self, images, views)

    def training_flops(self, images: int, views: int) -> float:
        """FLOPs of that, without what checkpointed blocks run again."""
        return self.costs.train_flops([PROMPT] * images, views, self.size, "generation", False).model


GUIDED = FlowSampling(num_timesteps=5, text_scale=4.0, interval=(0.0, 1.0))
"""Four steps, all guided."""


class SamplerStep:
    """Velocities under both contexts and their guidance, of noise at one time."""

    @torch.no_grad()
    def __init__(self, made: RandomModel, images: int) -> None:
        generator, module = made.model.generator, made.module
        contexts = generator.contexts(generator.prompt_ids([Prompt("a", PROMPT)] * images))
        self.module = module
        self.plan = module.plan_denoising([module.branch(c) for c in (contexts.full, contexts.no_text)], made.grid)
        self.x_NTC = made.random(images, made.tokens, made.config.token_channels)
        self.time_1 = torch.full((1,), 0.7, device=made.where.device)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        parts = self.module.velocities(self.x_NTC, self.time_1, self.plan)
        return guide(parts[0], parts[1], None, text_scale=4.0, image_scale=1.0, renorm="global", renorm_min=0.0)


class TrainingPass:
    """The mean squared distance to random velocities, and its gradient."""

    def __init__(self, made: RandomModel, images: int, views: int) -> None:
        shape = images, views, made.tokens, made.config.token_channels
        inputs = {
            "x_NMTC": made.random(*shape),
            "time_NM": torch.rand(images, views, device=made.where.device),
            "dropped_NM": torch.zeros(images, views, dtype=torch.bool),
        }
        counts = torch.ones(shape[:3], dtype=torch.bool, device=made.where.device)
        self.view = TrainView(inputs, made.random(*shape), counts)
        self.prompts = [Prompt("a", PROMPT)] * images
        self.made = made

    @cached_property
    def parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.made.module.parameters() if parameter.requires_grad]

    def forward(self) -> Tensor:
        """The loss."""
        made = self.made
        predicted = made.model.predict(made.module, self.prompts, self.view, made.grid)
        return (predicted - self.view.target).square().mean()

    def __call__(self) -> Tensor:
        loss = self.forward()
        loss.backward()
        for parameter in self.parameters:
            parameter.grad = None
        return loss.detach()


@torch.no_grad()
def open_random(layers: int, where: Where, seed: int = 0) -> RandomModel:
    """Builds it on the meta device, then draws the weights on the device, in bf16."""
    config = configuration(layers, where)
    tokenizer = BagelTokenizer(MODEL, config.llm.vocab_size)
    dtype = torch.float32 if where.rehearse else torch.bfloat16
    with torch.device("meta"):
        module = Bagel(config, tokenizer.special)
        autoencoder = Autoencoder(config.vae)
    module = module.to(dtype).to_empty(device=where.device)
    autoencoder = autoencoder.to_empty(device=where.device)
    for part in (module, autoencoder):
        draw_weights(part, where.device, seed)
        part.eval().requires_grad_(False)
    model = BagelAdapter(MODEL, Reader(config, module, autoencoder, tokenizer))
    return RandomModel(config, model, BagelCosts(config, "random weights", tokenizer), where)


@torch.no_grad()
def draw_weights(module: nn.Module, device: torch.device, seed: int) -> None:
    """Matrices of inputs' usual spread (1 / sqrt of the fan-in), norms of one, biases of zero."""
    generator = torch.Generator(device=device).manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    for buffer in module.buffers():
        buffer.zero_()
