"""Completion scripts: cyclopts' own for commands and options, and around it ours for recipes and ``key=value``.

The scripts hold all names, so that completing starts no Python: print them again after an update.
"""

from __future__ import annotations

import re
import shlex
import types
import typing
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from srum_ds.config.descriptions import section_types
from srum_ds.config.marks import QUESTIONS, ROOT, OneOf, PathOrName, TemplateName, find_path
from srum_ds.config.messages import marks
from srum_ds.config.reading import RECIPES, known_keys

# Commands that take [RECIPE] [key=value ...].
_WITH_RECIPE = ("train", "plan", "ablate", "calibrate", "rollout", "rescore", "config show")

_BASH = """
_srum_ds_sections={sections}
_srum_ds_keys={keys}
_srum_ds_recipes={recipes}
_srum_ds_valued={valued}

_srum_ds_values() {{
  case "$1" in
{values}
  esac
}}

_srum_ds_files() {{
  local IFS=$'\\n'
  COMPREPLY+=($(compgen -f -- "$1"))
  compopt -o filenames 2>/dev/null
}}

# Completes $1, a word of [RECIPE] [key=value ...]; $2: the keys to offer, $3: the recipes.
_srum_ds_setting() {{
  local word="$1" key value
  COMPREPLY=()
  if [[ $word == *=* ]]; then
    key="${{word%%=*}}" value="${{word#*=}}"
    COMPREPLY=($(compgen -W "$(_srum_ds_values "$key")" -- "$value"))
    [[ " {paths} " == *" $key "* ]] && _srum_ds_files "$value"
    # Bash replaces what stands behind the last of these signs.
    [[ $COMP_WORDBREAKS == *=* ]] || COMPREPLY=("${{COMPREPLY[@]/#/$key=}}")
    return
  fi
  if [[ $word == *.* ]]; then
    COMPREPLY=($(compgen -W "$2" -- "$word"))
  else
    COMPREPLY=($(compgen -W "$3" -- "$word"))
  fi
  # Nothing is to follow a section's point, or a key's sign.
  [[ "${{COMPREPLY[*]}}" == *[.=]* ]] && compopt -o nospace 2>/dev/null
  [[ ${{#COMPREPLY[@]}} -gt 0 || -z $word ]] || _srum_ds_files "$word"
}}

_srum_ds_all() {{
  local line="${{COMP_LINE:0:COMP_POINT}}" prev="${{COMP_WORDS[COMP_CWORD-1]}}"
  local word="${{line##*[[:space:]]}}" command="${{COMP_WORDS[1]}}" first=2
  [[ $command == config ]] && command="config ${{COMP_WORDS[2]}}" first=3
  if [[ $COMP_CWORD -lt $first ]]; then
    _srum_ds
    return
  fi
  if [[ $word != -* && " $_srum_ds_valued " != *" $prev "* ]]; then
    case "$command" in
      {with_recipe})
        _srum_ds_setting "$word" "$_srum_ds_keys" "$_srum_ds_recipes $_srum_ds_sections"
        return
        ;;
      "config explain")
        _srum_ds_setting "$word" "${{_srum_ds_keys//=/}}" "$_srum_ds_sections"
        return
        ;;
      eval)
        if [[ $word == eval* ]]; then
          _srum_ds_setting "$word" "$_srum_ds_keys" "eval."
          return
        fi
        ;;
    esac
  fi
  _srum_ds
}}

complete -F _srum_ds_all srum-ds
"""

_ZSH = """
_srum_ds_sections=({sections_words})
_srum_ds_keys=({keys_words})
_srum_ds_recipes=({recipes_words})
_srum_ds_valued={valued}

_srum_ds_values() {{
  case "$1" in
{values}
  esac
}}

# Completes a word of [RECIPE] [key=value ...].
_srum_ds_setting() {{
  local word="$words[CURRENT]" key
  if [[ $word == *=* ]]; then
    key="${{word%%=*}}"
    compset -P '*='
    compadd -- ${{=$(_srum_ds_values "$key")}}
    [[ " {paths} " == *" $key "* ]] && _files
    return 0
  fi
  if [[ $word == *.* ]]; then
    compadd -S '=' -- $_srum_ds_keys || _files
  else
    compadd -- $_srum_ds_recipes
    compadd -S '.' -- $_srum_ds_sections
    _files -g '*.yaml'
  fi
  return 0
}}

_srum_ds_all() {{
  local word="$words[CURRENT]" prev="$words[CURRENT-1]" command="$words[2]" first=3
  [[ $command == config ]] && command="config $words[3]" first=4
  if [[ $CURRENT -ge $first && $word != -* && " $_srum_ds_valued " != *" $prev "* ]]; then
    case "$command" in
      {with_recipe})
        _srum_ds_setting
        return
        ;;
      "config explain")
        compadd -- $_srum_ds_keys $_srum_ds_sections
        return
        ;;
      eval)
        if [[ $word == eval* ]]; then
          _srum_ds_setting
          return
        fi
        ;;
    esac
  fi
  _cyclopts_srum-ds "$@"
}}

compdef _srum_ds_all srum-ds
"""


def completion_script(generated: str, shell: Literal["bash", "zsh"]) -> str:
    """A shell's script: ``generated`` by cyclopts, and ours, which calls it for all but recipes and settings."""
    keys = list(known_keys())
    sections = list(section_types())
    recipes = sorted(path.stem for path in find_path(RECIPES).glob("*.yaml"))
    places = (PathOrName, TemplateName)
    paths = [key for key, kind in known_keys().items() if any(isinstance(mark, places) for mark in marks(kind))]
    values = [f"    {key}) echo {shlex.quote(' '.join(found))} ;;" for key in keys if (found := values_of(key))]
    script = (_BASH if shell == "bash" else _ZSH).format(
        sections=_quoted(f"{section}." for section in sections),
        sections_words=" ".join(sections),
        keys=_quoted(f"{key}=" for key in keys),
        keys_words=" ".join(keys),
        recipes=_quoted(recipes),
        recipes_words=" ".join(recipes),
        valued=_quoted(_options_with_values(generated)),
        values="\n".join(values),
        paths=" ".join(paths),
        with_recipe="|".join(shlex.quote(name) for name in _WITH_RECIPE),
    )
    return generated.replace("complete -F _srum_ds srum-ds\n", "").rstrip("\n") + "\n" + script


def values_of(key: str) -> list[str]:
    """Words that a setting may be, where they are few and known; none else."""
    kind = known_keys()[key]
    if any(isinstance(mark, TemplateName) for mark in marks(kind)):
        return sorted(path.stem for path in (ROOT / QUESTIONS).glob("*.jinja"))
    for mark in marks(kind):
        if isinstance(mark, OneOf):
            return mark.names()
    return list(_words(kind))


def _words(kind: Any) -> Iterable[str]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        yield from arguments
    elif origin in (typing.Union, types.UnionType):
        found = [word for part in arguments if part is not type(None) for word in _words(part)]
        yield from [*found, "null"] if found else []
    elif origin is Annotated:
        yield from _words(arguments[0])
    elif kind is bool:
        yield from ("true", "false")


def _options_with_values(generated: str) -> list[str]:
    """Options behind which a value stands, as cyclopts' scripts know them."""
    bash = re.search(r"options_with_values='([^']*)'", generated)
    found = bash.group(1).split() if bash else re.findall(r"'\*(--[\w-]+)\[[^]]*\]:", generated)
    return sorted(set(found))


def _quoted(words: Iterable[str]) -> str:
    return shlex.quote(" ".join(words))
