"""`srum-ds push`: a run's exported model, with its card, onto the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from srum_ds.common.errors import UserError, hide

if TYPE_CHECKING:
    from huggingface_hub import HfApi

LEFT_OUT = ("images/", "samples/")


def push(
    folder: Path,
    repo: str,
    /,
    *,
    public: Annotated[bool, Parameter(negative=())] = False,
    message: str = "",
    revision: str | None = None,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Upload a trained model to the Hugging Face hub, with its model card, settings and pictures.

    The repository is private unless --public is given; one that is there and public is refused without it. The token
    is the hub's own: `hf auth login`, or HF_TOKEN.

    Parameters
    ----------
    folder
        A run's folder (its export is meant), or the folder of an export.
    repo
        Where to: NAME/REPOSITORY.
    public
        Let everybody see it.
    message
        Of the commit.
    revision
        Branch to upload to, which is there (default: main).
    dry_run
        Say what would be uploaded, and do nothing.
    """
    export = exported_folder(folder)
    files = files_of(export)
    size = sum(path.stat().st_size for path in files)
    said = f"{export}: {len(files)} files, {_size(size)}, to {repo} ({'public' if public else 'private'})"
    if dry_run:
        print(f"would upload {said}")
        for path in files:
            print(f"  {path.relative_to(export)}  {_size(path.stat().st_size)}")
        return
    token = own_token()
    print(f"uploading {said}", flush=True)
    print(upload(token, export, files, repo, public, message or f"Upload {export.resolve().parent.name}", revision))


def exported_folder(folder: Path) -> Path:
    """A run's export, or a folder that is one itself. UserError where neither holds weights and a model card."""
    from srum_ds.evaluation.model_card import CARD
    from srum_ds.models import family_of
    from srum_ds.monitoring.run_folder import CONFIG, EXPORT

    export = folder / EXPORT if (folder / CONFIG).is_file() else folder
    if not export.is_dir():
        cure = "the run has not finished: repeat its `srum-ds train`" if export != folder else "give a run's folder"
        raise UserError(f"{export}: no exported model there; {cure}")
    family_of(export)
    if not any(export.rglob("*.safetensors")):
        raise UserError(f"{export}: holds no weights (*.safetensors)")
    if not (export / CARD).is_file():
        raise UserError(f"{export}: has no {CARD}, and a model without one says nothing of itself: export it again")
    return export


def files_of(export: Path) -> list[Path]:
    """What is uploaded: every file of an export but hidden ones, and pictures that were drawn into it."""
    inside = [path for path in sorted(export.rglob("*")) if path.is_file()]
    named = [(path, path.relative_to(export)) for path in inside]
    return [
        path
        for path, name in named
        if not any(part.startswith(".") for part in name.parts) and not name.as_posix().startswith(LEFT_OUT)
    ]


def own_token() -> str:
    """The hub's own token, which no message will say. UserError where there is none."""
    import huggingface_hub

    token = huggingface_hub.get_token()
    if token is None:
        raise UserError("no token for the Hugging Face hub: run `hf auth login`, or set HF_TOKEN, and repeat this.")
    hide(token, "(the hub's token)")
    return token


def upload(
    token: str, export: Path, files: list[Path], repo: str, public: bool, message: str, revision: str | None
) -> str:
    """Makes the repository where it is not there, uploads, and returns the commit's address.

    Raises UserError, in one line and without the token, where the hub cannot be reached or refuses, and for a public
    repository that ``public`` does not allow.
    """
    import huggingface_hub
    from huggingface_hub import errors

    api = huggingface_hub.HfApi(token=token, library_name="srum-ds")
    try:
        return _upload(api, export, files, repo, public, message, revision)
    except UserError:
        raise
    except errors.OfflineModeIsEnabled as error:
        raise UserError(f"{repo}: HF_HUB_OFFLINE is set, so nothing is uploaded; unset it and repeat this.") from error
    except errors.HFValidationError as error:
        raise UserError(f"{repo}: is no repository's name ({_line(error)}); give NAME/REPOSITORY.") from error
    except errors.HfHubHTTPError as error:
        raise UserError(f"{repo}: the hub refused: {_line(error)}. Is the token allowed to write there?") from error
    # The hub's client speaks over several libraries; each has errors of its own for a network that is not there.
    except Exception as error:
        raise UserError(
            f"{repo}: {api.endpoint} cannot be reached, or broke off ({_line(error)}); what was uploaded is kept: "
            "repeat the command when there is a network."
        ) from error


def _upload(
    api: HfApi, export: Path, files: list[Path], repo: str, public: bool, message: str, revision: str | None
) -> str:
    made = api.create_repo(repo, private=not public, repo_type="model", exist_ok=True)
    info: Any = api.repo_info(made.repo_id, repo_type="model")
    if not public and not info.private:
        raise UserError(
            f"{made.repo_id}: is public already, so everybody would see this model: pass --public to allow it."
        )
    commit = api.upload_folder(
        repo_id=made.repo_id,
        folder_path=export,
        repo_type="model",
        commit_message=message,
        revision=revision,
        # Names, with what a pattern would read otherwise taken as it stands.
        allow_patterns=[_literal(path.relative_to(export).as_posix()) for path in files],
    )
    return str(getattr(commit, "commit_url", commit))


def _literal(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _line(error: Exception) -> str:
    """The first line of an error's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")[:200]


def _size(count: int) -> str:
    if count < 1000:
        return f"{count} B"
    for unit, one in (("kB", 1e3), ("MB", 1e6)):
        if count < 1000 * one:
            return f"{count / one:.1f} {unit}"
    return f"{count / 1e9:.1f} GB"
