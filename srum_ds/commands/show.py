"""`srum-ds show`: a local page that draws a prompt with base and trained side by side, judges and answers."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from srum_ds.commands.placement import Placement, resolve_placement
from srum_ds.common.errors import UserError

HIGHEST_PORT = 65535


def show(
    source: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Open a local page on a run or a model: type a prompt, see base and trained, their rewards, and ask about them.

    Needs `pip install 'srum-ds[show]'`. The page can be reached from this machine alone unless --host says otherwise;
    whoever reaches it can use the model.

    Parameters
    ----------
    source
        A run's folder, such as runs/tiny, or a model's, such as runs/tiny/export.
    host
        Address to listen at; 0.0.0.0 lets other machines in.
    port
        Port to listen at; 0 takes a free one.
    device
        auto, cpu, cuda or cuda:1; auto is the GPU where there is one.
    dtype
        auto, float32, bfloat16 or float16; auto is bfloat16 on a GPU and float32 else.
    """
    if not 0 <= port <= HIGHEST_PORT:
        raise UserError(f"--port {port}: expected 0 to {HIGHEST_PORT}; 0 takes a free one.")
    if find_spec("gradio") is None:
        raise UserError("the page needs Gradio, which is not installed: pip install 'srum-ds[show]'.")
    from srum_ds.commands.show_page import serve
    from srum_ds.evaluation.showroom import open_showroom

    found_device, found_dtype = resolve_placement(Placement(device, dtype))
    serve(open_showroom(source, found_device, found_dtype), host, port)
