"""Presets in repositories of Hugging Face, through `huggingface_hub`, the extra `dynzoo[hub]`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dynzoo.utils.extras import extra
from dynzoo.utils.strict_json import short
from dynzoo.zoo.downloads import DownloadError, home

__all__ = ["PREFIX", "checked_repository", "from_hub", "to_hub"]

PREFIX = "hf://"
_ADDRESS = re.compile(r"([\w][\w.-]*)/([\w][\w.-]*)(?:@([\w][\w./-]*))?")
# What a preset may hold; nothing that could run is fetched.
_FILES = ["metadata.json", "config.json", "README.md", "model.weights.json", "*.h5"]


def from_hub(address: str) -> Path:
    """The folder of a preset in the cache, brought there from ``hf://owner/name``.

    Without a network, what was brought before is taken. The files are checked as those of every
    folder are when ``from_preset`` reads them.

    Args:
        address: ``"hf://owner/name"``, with ``@revision`` behind it for another than the newest.

    Raises:
        ImportError: without ``huggingface_hub``.
        ValueError: if the address has another form.
        DownloadError: in one line, if the repository cannot be had.
    """
    match = _ADDRESS.fullmatch(address.removeprefix(PREFIX))
    if match is None:
        raise ValueError(
            f"A preset's address must be hf://owner/name[@revision]. Received: {address}"
        )
    owner, name, revision = match.groups()
    hub = _library()
    folder = home() / "hub" / f"{owner}--{name}--{(revision or 'main').replace('/', '--')}"
    try:
        hub.snapshot_download(
            f"{owner}/{name}", revision=revision, local_dir=str(folder), allow_patterns=_FILES
        )
    except Exception as error:  # of a kind for each of network, name, right and disk
        if not (folder / "metadata.json").is_file():
            raise DownloadError(f"{address} cannot be had: {short(error)}") from None
    if not (folder / "metadata.json").is_file():
        raise DownloadError(f"{address} holds no preset: it lacks metadata.json.")
    return folder


def to_hub(folder: Path, repository: str, private: bool = False) -> str:
    """Writes the folder of a preset into a repository, which is made if need be; its address."""
    hub, target = _library(), checked_repository(repository)
    try:
        hub.create_repo(target, private=private, exist_ok=True)
        hub.upload_folder(repo_id=target, folder_path=str(folder))
    except Exception as error:  # as above
        raise DownloadError(f"{PREFIX}{target} cannot be written: {short(error)}") from None
    return PREFIX + target


def checked_repository(repository: str) -> str:
    """``"owner/name"``, if it is that, with or without ``hf://`` before it."""
    text = repository.removeprefix(PREFIX) if isinstance(repository, str) else ""
    match = _ADDRESS.fullmatch(text)
    if match is None or match[3]:
        raise ValueError(f"`repository` must be 'owner/name'. Received: {repository!r}")
    return f"{match[1]}/{match[2]}"


def _library() -> Any:
    with extra("hub"):
        import huggingface_hub
    return huggingface_hub
