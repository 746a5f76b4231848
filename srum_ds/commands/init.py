"""`srum-ds init`: a recipe of one's own to begin with."""

from __future__ import annotations

from pathlib import Path

_TEXT = """\
# What this recipe leaves out is as in {base}.
#
#   srum-ds train {file}
#   srum-ds config show {file}        # all settings that it comes to
#   srum-ds plan {file} --gpus 8 --gpu h100-80g
#
base: {base_yaml}

run:
  dir: {dir_yaml}                # where everything goes; the same command goes on from there
  seed: 0

# model:
#   path: /models/BAGEL-7B-MoT    # a folder as its authors publish it; `srum-ds inspect FOLDER` says whether it is read

# data:
#   shards: runs/prompts          # `srum-ds shards write --help` makes them of your prompts

train:
  steps: 120
  save_every: 20
"""


def init(file: Path, /, *, base: str = "tiny") -> int:
    """Write a short recipe of your own, on top of one that srum-ds brings along.

    Parameters
    ----------
    file
        The recipe to write, such as my.yaml. One that is there already is left as it is.
    base
        The recipe that it builds on: a name such as tiny or bagel, or a path.
    """
    import shlex

    import yaml

    from srum_ds.common.errors import UserError
    from srum_ds.common.files import write_atomic
    from srum_ds.config import load_config

    if file.exists() or file.is_symlink():
        raise UserError(f"{file} is there already and is left as it is: give another name.")
    if file.suffix not in (".yaml", ".yml"):
        raise UserError(f"{file}: a recipe is a YAML file; name it {file.name or 'my'}.yaml.")
    load_config(base)
    base_yaml, dir_yaml = (yaml.safe_dump(text).partition("\n")[0] for text in (base, f"runs/{file.stem}"))
    command = shlex.quote(str(file))
    write_atomic(file, _TEXT.format(base=base, base_yaml=base_yaml, dir_yaml=dir_yaml, file=command))
    print(f"{file} builds on {base}. Next: srum-ds train {command}")
    return 0
