"""`srum-ds completion`: what the shell completes, settings and recipes included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from cyclopts import App


def completion_of(app: App) -> Callable[[Literal["bash", "zsh"]], None]:
    """The command that prints a script for all commands of ``app``."""

    def completion(shell: Literal["bash", "zsh"]) -> None:
        """Print a script that completes commands, options, recipes, settings and their values.

        Parameters
        ----------
        shell
            bash: keep it as ~/.local/share/bash-completion/completions/srum-ds. zsh: source it in ~/.zshrc, after
            compinit.
        """
        from srum_ds.commands.completion_scripts import completion_script

        print(completion_script(app.generate_completion(prog_name="srum-ds", shell=shell), shell), end="")

    return completion
