"""A checkpoint folder whose tensors belong to a module: which is which, whether all are there, and export."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from srum_ds.common.errors import UserError
from srum_ds.common.finite import Stored, refuse_not_finite
from srum_ds.models.library.files import (
    FLOATS,
    STORED_DTYPES,
    copy_file,
    mapped_tensors,
    some,
    stored_forms,
    stored_tensor,
    weight_files,
    write_safetensors,
)

Streamed = Iterable[tuple[str, Tensor | None]]


def _same(key: str) -> str:
    return key


@dataclass(frozen=True)
class Part:
    """The weights of one folder of a checkpoint.

    folder: relative to the checkpoint's (``""``: itself). prefix: of its parameters' names in the module. files: names
    that its weights may have where they are not split by an index. name_of: from a key of the files to the parameter's
    name without the prefix, or None for a key that is no parameter of the module and is kept as it is. exported: the
    name of the file that export writes; None: the first of ``files``.
    """

    folder: str = ""
    prefix: str = ""
    files: tuple[str, ...] = ("model.safetensors",)
    name_of: Callable[[str], str | None] = _same
    exported: str | None = None


@dataclass(frozen=True)
class FolderWeights:
    """The parts of a checkpoint folder, as tensors of one module by the module's names.

    folder: the checkpoint's. aliases: other names of a parameter that the module shares (``names_of_ties``), by which a
    file may store it too. copied: what export takes over beside the weights, by their names in ``folder``; None: every
    file but weights, and folders too.
    """

    folder: Path
    parts: Sequence[Part] = (Part(),)
    aliases: dict[str, str] = field(default_factory=dict)
    copied: tuple[str, ...] | None = None

    @cached_property
    def _files(self) -> list[dict[str, Path]]:
        return [weight_files(self.folder / part.folder, part.files) for part in self.parts]

    @cached_property
    def _places(self) -> dict[str, list[tuple[int, str]]]:
        """By parameter: the (part, key) that store it, several where a shared one is stored twice."""
        places: dict[str, list[tuple[int, str]]] = {}
        for number, (part, files) in enumerate(zip(self.parts, self._files, strict=True)):
            for key in files:
                name = self._name(part, key)
                if name is not None:
                    places.setdefault(name, []).append((number, key))
        return places

    def _name(self, part: Part, key: str) -> str | None:
        name = part.name_of(key)
        return None if name is None else self.aliases.get(part.prefix + name, part.prefix + name)

    def stored(self) -> Stored:
        """(the module's name, tensor as stored, memory-mapped), one at a time; see ``mapped_tensors``.

        Whoever takes values of them refuses such as are not finite (``finite.refuse_not_finite``).
        """
        return Stored(self._read)

    def _read(self) -> Iterator[tuple[str, Tensor, Path, str]]:
        for part, files in zip(self.parts, self._files, strict=True):
            for key, tensor, path in mapped_tensors(files):
                name = self._name(part, key)
                if name is not None:
                    yield name, tensor, path, key

    def tensor(self, name: str) -> Tensor:
        """The stored tensor of one parameter."""
        number, key = self._places[name][0]
        return stored_tensor(self._files[number], key)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape, from the file's header."""
        number, key = self._places[name][0]
        return stored_forms({key: self._files[number][key]})[key][1]

    def check(self, module: nn.Module, hint: str = "config.json belongs") -> None:
        """Compares a module's tensors with the folder's, from the files' headers alone.

        Every parameter and stored buffer must be there with its shape, and no other tensor: UserError lists what
        differs, or what is to be copied where whole parts are missing and nothing else differs. Buffers that the
        library does not store need not be there. ``hint`` says what should fit the weights.
        """
        wanted: dict[str, Tensor] = {name: parameter for name, parameter in module.named_parameters()}
        optional = dict(module.named_buffers())
        stored_buffers = set(module.state_dict(keep_vars=True)) & set(optional)
        present: set[str] = set()
        misshapen = []
        forms = [stored_forms(files) for files in self._files]
        for name, places in self._places.items():
            present.add(name)
            tensor = wanted.get(name, optional.get(name))
            if tensor is None:
                continue
            for number, key in places:
                kind, shape = forms[number][key]
                if kind not in STORED_DTYPES:
                    continue
                if shape != tuple(tensor.shape):
                    misshapen.append(f"{key} is {list(shape)}, expected {list(tensor.shape)}")
                elif tensor.is_floating_point() and kind not in FLOATS:
                    misshapen.append(f"{key} is of type {kind}, expected one of {', '.join(FLOATS)}")
        # What no parameter takes is written again by export, which knows these types alone.
        for form in forms:
            for key, (kind, _) in form.items():
                if kind not in STORED_DTYPES:
                    misshapen.append(f"{key} is of type {kind}, expected one of {', '.join(STORED_DTYPES)}")
        for name, places in self._places.items():
            # A tie is stored under two names of its own; here two keys say the same one, and one would be lost.
            own: dict[str, list[str]] = {}
            for number, key in places:
                own.setdefault(f"{self.parts[number].prefix}{self.parts[number].name_of(key)}", []).append(key)
            misshapen += [f"{' and '.join(keys)} are both {name}" for keys in own.values() if len(keys) > 1]
        missing = sorted((set(wanted) | stored_buffers) - present)
        unexpected = sorted(present - set(wanted) - set(optional))
        problems = []
        if missing:
            problems.append("missing: " + some(missing))
        if unexpected:
            problems.append("unexpected: " + some(unexpected))
        if misshapen:
            problems.append("misshapen: " + some(sorted(misshapen)))
        left_out = [] if unexpected or misshapen else _whole_parts(missing, present)
        if left_out:
            raise UserError(
                f"the weights in {self.folder} are not whole. missing: {some(missing)}. Whatever saved them left "
                f"{some(left_out)} out, as a fine-tune may that did not train this: copy these tensors from the model "
                "that it began with into the weights. The configuration fits them."
            )
        if problems:
            raise UserError(
                f"the weights in {self.folder} do not fit its configuration. " + "; ".join(problems) + ". "
                f"Check that {hint} to these weights."
            )

    def settle_ties(self, module: nn.Module) -> FolderWeights:
        """The same with the module's shared parameters known by every name.

        A file that stores a shared parameter twice, with other values, wins over a configuration that shares it: the
        module's second owner then gets a parameter of its own, as transformers 5 does.
        """
        aliases = names_of_ties(module)
        for alias, name in list(aliases.items()):
            if self._differ(alias, name):
                owner_name, _, attribute = alias.rpartition(".")
                owner = module.get_submodule(owner_name)
                shared = getattr(owner, attribute)
                setattr(owner, attribute, nn.Parameter(torch.empty_like(shared), requires_grad=shared.requires_grad))
                del aliases[alias]
        return FolderWeights(self.folder, self.parts, aliases, self.copied)

    def _differ(self, alias: str, name: str) -> bool:
        if not {alias, name} <= self._places.keys():
            return False
        return not torch.equal(self.tensor(alias), self.tensor(name))

    def export(self, target: Path, names: Iterable[str], tensors: Streamed, dtype: torch.dtype | None = None) -> None:
        """Writes the folder with the parameters called ``names`` replaced.

        tensors: the (name, tensor) pairs in the order of ``names``, in which each part's stand together, so that a
        caller can stream them one at a time; they are stored in ``dtype`` (None: as the folder stores them), under the
        names that they have in the folder. Everything else is copied unchanged. UserError for the folder itself as
        target.
        """
        target = Path(target)
        if self.folder.resolve() == target.resolve():
            raise UserError(f"refusing to export over the model's own folder {self.folder}; choose another one.")
        trained = list(names)
        unknown = sorted(set(trained) - set(self._places))
        if unknown:
            raise ValueError(f"trained tensors the source does not have: {some(unknown)}")
        target.mkdir(parents=True, exist_ok=True)
        for path in self._beside():
            copy_file(path, target / path.relative_to(self.folder))
        remaining = iter(tensors)
        for number in self._order(trained):
            self._export_part(number, target, trained, remaining, dtype)

    def _order(self, trained: Sequence[str]) -> list[int]:
        """Parts in the order in which their parameters come, then those of which none is replaced."""
        numbers = [self._places[name][0][0] for name in trained]
        order = list(dict.fromkeys(numbers))
        runs = [number for place, number in enumerate(numbers) if place == 0 or numbers[place - 1] != number]
        if runs != order:
            raise ValueError("the replaced tensors of one part of the checkpoint do not stand together")
        return order + [number for number in range(len(self.parts)) if number not in order]

    def _export_part(
        self,
        number: int,
        target: Path,
        trained: Sequence[str],
        tensors: Iterator[tuple[str, Tensor | None]],
        dtype: torch.dtype | None,
    ) -> None:
        part, files = self.parts[number], self._files[number]
        forms = stored_forms(files)
        own = [name for name in trained if self._places[name][0][0] == number]
        keys_of = {name: [key for place, key in self._places[name] if place == number] for name in own}
        replaced = [key for name in own for key in keys_of[name]]
        kept = sorted(set(files) - set(replaced))
        shapes: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for key in (*replaced, *kept):
            kind, shape = forms[key]
            stored = STORED_DTYPES[kind]
            shapes[key] = (dtype if dtype is not None and key in set(replaced) else stored, shape)
        unchanged = ((key, self._kept(files, key)) for key in kept)
        folder = target / part.folder
        folder.mkdir(parents=True, exist_ok=True)
        new = _under_keys(tensors, own, keys_of)
        write_safetensors(folder / (part.exported or part.files[0]), shapes, chain(new, unchanged))

    def _kept(self, files: dict[str, Path], key: str) -> Tensor:
        """A stored tensor that export takes over; no module may ever have looked at it. UserError if not finite."""
        tensor = stored_tensor(files, key)
        refuse_not_finite(tensor, f"{files[key]}: {key}")
        return tensor

    def _beside(self) -> Iterator[Path]:
        """What export copies."""
        if self.copied is not None:
            yield from (self.folder / name for name in self.copied if (self.folder / name).exists())
            return
        weights = {path for files in self._files for path in files.values()}
        for path in sorted(self.folder.rglob("*")):
            inside = path.relative_to(self.folder)
            hidden = any(piece.startswith(".") for piece in inside.parts)
            split = path.name.endswith(".safetensors.index.json")
            pickled = path.suffix in (".bin", ".pt", ".pth", ".ckpt")
            if path.is_file() and path not in weights and not (hidden or split or pickled or inside.parts[0] == "lora"):
                yield path


def _under_keys(
    tensors: Iterator[tuple[str, Tensor | None]], names: Sequence[str], keys_of: dict[str, list[str]]
) -> Iterator[tuple[str, Tensor | None]]:
    """The next tensors, those of ``names``, each under every key that stores it."""
    for expected in names:
        name, tensor = next(tensors, ("nothing", None))
        if name != expected:
            raise ValueError(f"expected {expected}, got {name}")
        for key in keys_of[name]:
            yield key, tensor
        del tensor


def _whole_parts(missing: Sequence[str], present: set[str]) -> list[str]:
    """The parts of a module of which nothing is present, where these are all that is missing; else none.

    Layers beyond those that are present are no part: a configuration may say too many.
    """
    inside = {name[:end] for name in present for end in _ends(name)}
    parts: dict[str, None] = {}
    for name in missing:
        part = next(name[:end] for end in _ends(name) if name[:end] not in inside)
        if part.rpartition(".")[2].isdigit() or (part == name and name.rpartition(".")[0] in inside):
            return []
        parts[part] = None
    return list(parts)


def _ends(name: str) -> list[int]:
    """Where each part of a dotted name ends."""
    return [place for place, letter in enumerate(name) if letter == "."] + [len(name)]


def names_of_ties(module: nn.Module) -> dict[str, str]:
    """Other names of the module's shared parameters, each with the name that ``named_parameters`` gives."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    return {name: first[id(parameter)] for name, parameter in every if first[id(parameter)] != name}
