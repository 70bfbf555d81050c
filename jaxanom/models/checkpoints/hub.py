"""A name on the Hugging Face hub -> a directory on this machine.

What is in the hub's local cache is used as it is, offline and without any package:
`<cache>/models--owner--name/refs/<revision>` names a commit and
`snapshots/<commit>/` holds its files. What is not there `huggingface_hub` fetches.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxanom.errors import UserError

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_name(name: str) -> bool:
    """Says whether a text can be a hub name, "owner/name" or "owner/name@revision"."""
    return _NAME.fullmatch(name) is not None and ".." not in name


def cache_directory() -> Path:
    """Returns the hub's cache, by the environment variables that its own tools read."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    home = os.environ.get("HF_HOME")
    if not home:
        caches = os.environ.get("XDG_CACHE_HOME", "~/.cache")
        home = Path(caches) / "huggingface"
    return Path(home).expanduser() / "hub"


def cached(name: str) -> Path | None:
    """Returns the snapshot of a hub name in the local cache, if there is one."""
    repository, revision = _split(name)
    folder = cache_directory() / f"models--{repository.replace('/', '--')}"
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if _COMMIT.fullmatch(commit) and snapshot.is_dir() else None


def resolve(
    name: str,
    is_complete: Callable[[Path], bool],
    patterns: Sequence[Sequence[str]],
) -> Path:
    """Returns a directory that holds what is wanted of a hub name.

    Args:
      name: "owner/name", or "owner/name@revision".
      is_complete: Says whether a directory holds it.
      patterns: What to fetch, such as ["unet/*.json", "unet/*.safetensors"]; later
        entries are tried where the earlier ones did not do.

    Raises:
      UserError: the hub refuses, or has no such files.
      ImportError: nothing is cached and `huggingface_hub` is not installed.
    """
    snapshot = cached(name)
    if snapshot is not None and is_complete(snapshot):
        return snapshot
    for group in patterns:
        snapshot = _download(name, group)
        if is_complete(snapshot):
            return snapshot
    names = [pattern for group in patterns for pattern in group]
    raise UserError(f"{name} on the hub lacks what is wanted: none of {names} did")


def _split(name: str) -> tuple[str, str]:
    repository, _, revision = name.partition("@")
    return repository, revision or "main"


def _download(name: str, patterns: Sequence[str]) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"{name!r} is no local path and not in {cache_directory()}; to fetch it "
            "from the hub, pip install jaxanom[hf] (or huggingface_hub), or give the "
            "path of a directory that holds it"
        ) from error
    repository, revision = _split(name)
    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(patterns),
            cache_dir=cache_directory(),
        )
    except Exception as error:  # The library raises errors of many packages.
        raise UserError(
            f"{name!r} is no local path, and the hub did not give it: {error}"
        ) from error
    return Path(folder)
