"""The page of `srum-ds show`, in Gradio. What it does is done by ``evaluation.showroom``; here it is laid out."""

from __future__ import annotations

import html
import os
import socket
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

from srum_ds.common.errors import UserError, concealed
from srum_ds.evaluation.showroom import OVERLAYS, REGIONS, Drawing, Showroom, compared, said_rows

EXAMPLE = "a red circle above a blue square"
UPLOADED = "a picture of mine"
CSS = """
.said table { width: 100%; border-collapse: collapse; font-size: .9rem; }
.said table, .said th, .said td { border: 0 !important; }
.said th, .said td { text-align: left; vertical-align: top; overflow-wrap: anywhere; }
.said th, .said td { padding: .3rem .5rem .3rem 0 !important; }
.said tr { border: 0 !important; border-top: 1px solid var(--border-color-primary) !important; }
.said td:nth-child(2) { white-space: nowrap; font-variant-numeric: tabular-nums; font-weight: 600; }
.drawn img { image-rendering: pixelated; }
"""


def serve(room: Showroom, host: str, port: int) -> None:
    """Serves the page until it is interrupted. UserError for a port that is taken."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    import gradio as gr

    chosen = _free(host, port)
    page = build(room)
    print(f"{room.title}: http://{host}:{chosen} (Ctrl-C ends it)", flush=True)
    page.launch(
        server_name=host,
        server_port=chosen,
        share=False,
        inbrowser=False,
        quiet=True,
        css=CSS,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        footer_links=[],
    )


def _free(host: str, port: int) -> int:
    """The port, or a free one for 0. UserError where it cannot be listened at."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: cannot be listened at ({error.strerror}); try --port 0."
        ) from None


def build(room: Showroom) -> Any:
    """The page's blocks."""
    import gradio as gr

    sides = list(room.sides)
    with gr.Blocks(title=f"srum-ds show: {room.title}", analytics_enabled=False) as page:
        drawn = gr.State([])
        gr.Markdown(
            f"# {_plain(room.title)}\nDrawn by {' and '.join(sides)} with the same noise, judged by the model itself."
        )
        with gr.Row():
            with gr.Column(scale=3):
                prompt = gr.Textbox(label="Prompt", value=EXAMPLE, lines=2)
                objects = gr.Textbox(
                    label="Objects (optional, with commas between)", placeholder="found by the run’s rule"
                )
            with gr.Column(scale=2):
                seed = gr.Number(label="Seed", value=0, precision=0, minimum=0)
                settings = [
                    gr.Number(label=f"Sampler: {name}", value=value, precision=0 if isinstance(value, int) else None)
                    for name, value in room.offered.items()
                ]
        with gr.Row():
            go = gr.Button("Draw", variant="primary")
            over = gr.Radio(list(OVERLAYS), value=REGIONS, label="Over the pictures")
        verdict = gr.Markdown("")
        pictures, said = [], []
        with gr.Row():
            for side in sides:
                with gr.Column():
                    pictures.append(
                        gr.Image(
                            label=side,
                            type="pil",
                            interactive=False,
                            elem_classes="drawn",
                            height=420,
                            # Nothing is to leave the machine.
                            buttons=["download", "fullscreen"],
                        )
                    )
                    said.append(gr.HTML(elem_classes="said", apply_default_css=False))
        gr.Markdown("## Ask about a picture")
        with gr.Row():
            with gr.Column(scale=3):
                question = gr.Textbox(label="Question", value="is there a red circle?")
                with gr.Row():
                    about = gr.Radio([*sides, UPLOADED], value=sides[-1], label="About")
                    who = gr.Radio(sides, value=sides[-1], label="Answered by")
                choices = gr.Textbox(label="Answers to choose from (optional, with commas between)", value="yes, no")
                answer = gr.Textbox(label="Answer", interactive=False, lines=2)
                asking = gr.Button("Ask")
            own = gr.Image(label=UPLOADED, type="pil", scale=2, height=260, sources=["upload", "clipboard"], buttons=[])
        gr.Markdown(f"Sampler: {_plain(room.sampler)}. Image {room.image_size[0]} x {room.image_size[1]} pixels.")

        def draw(text: str, some: str, number: float, kind: str, *values: float) -> list[Any]:
            changed = dict(zip(room.offered, values, strict=True))
            found = room.draw(text, int(number or 0), some, changed)
            return [found, compared(found), *shown(found, kind), *(table(drawing) for drawing in found)]

        def ask(found: Sequence[Drawing], text: str, some: str, which: str, by: str, mine: Any) -> str:
            picture = mine if which == UPLOADED else next((d.picture() for d in found if d.side == which), None)
            if picture is None:
                raise UserError("There is no picture yet: draw one, or give one of yours.")
            said = room.ask(by, picture, text, some)
            return "\n".join(text if share is None else f"{text}: {share:.1%}" for text, share in said)

        drawing = {
            "fn": _told(draw),
            "inputs": [prompt, objects, seed, over, *settings],
            "outputs": [drawn, verdict, *pictures, *said],
        }
        go.click(**drawing)
        prompt.submit(**drawing)
        over.change(shown, [drawn, over], pictures)
        asked = {"fn": _told(ask), "inputs": [drawn, question, choices, about, who, own], "outputs": answer}
        asking.click(**asked)
        question.submit(**asked)
    return page


def shown(found: Sequence[Drawing], kind: str) -> list[Any]:
    """The pictures of what was drawn, with what is to be over them."""
    return [drawing.picture(kind) for drawing in found]


def table(drawing: Drawing) -> str:
    """What the judge said, as HTML; texts are escaped."""
    rows = "".join(
        f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in said_rows(drawing.seen)
    )
    return f"<table><tr><th>Of</th><th>Score</th><th>The judge’s answer</th></tr>{rows}</table>"


def _plain(text: str) -> str:
    """A text for Markdown, in which nothing is markup."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]()<>#+-.!|" else letter for letter in text)


def _told(work: Callable[..., Any]) -> Callable[..., Any]:
    """Work whose UserError is shown on the page."""

    @wraps(work)
    def shielded(*inputs: Any) -> Any:
        import gradio as gr

        try:
            return work(*inputs)
        except UserError as error:
            raise gr.Error(concealed(str(error)), print_exception=False) from None

    return shielded
