"""`srum-ds check-adapter`: whether a design keeps the contract of ``models/protocol.py``."""

from __future__ import annotations

from pathlib import Path


def check_adapter(name: str, folder: Path) -> int:
    """Check a design of models against the contract that training, judging and drawing rely on.

    Loads the model, draws, judges, trains a step and saves; give a small one. Ends with 0 where everything holds
    and with 1 where something does not.

    Parameters
    ----------
    name
        Name of the design, module:attribute or file.py:attribute; auto lets the folder say it.
    folder
        Checkpoint folder of that design.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from srum_ds.models.contract import check_adapter as run

    checks = run(name, folder)
    table = Table(title=f"{name}: {folder}")
    for column in ("check", "holds", "what was found"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(check.name, "yes" if check.ok else "no", Text(check.detail))
    Console().print(table)
    return 0 if all(check.ok for check in checks) else 1
