"""BAGEL without its drawing half, for a judge: the generation experts are never read, so they need not be there."""

from __future__ import annotations

from torch import Tensor, nn


class NoRows(nn.Module):
    """Stands where a generation expert was: it is called on no rows and gives none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """[0, ..., width] from [0, ..., any]; RuntimeError for rows, which only drawing has."""
        if len(x):
            raise RuntimeError("this model was loaded to judge only: it has no generation experts to draw with")
        return x.new_zeros(*x.shape[:-1], self.width)


def drop_generation(module: nn.Module) -> None:
    """Takes the generation experts (``*_moe_gen``) out of a BAGEL module, in place."""
    for parent in list(module.modules()):
        for name, expert in list(parent.named_children()):
            if name.endswith("_moe_gen"):
                setattr(parent, name, NoRows(_width(expert)))


def _width(expert: nn.Module) -> int:
    if isinstance(expert, nn.Linear):
        return expert.out_features
    if isinstance(expert, nn.RMSNorm):
        return expert.normalized_shape[-1]
    return int(expert.get_submodule("down_proj").out_features)  # type: ignore[arg-type]
