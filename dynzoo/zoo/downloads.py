"""Weights that do not ship: from a folder or a server into a cache, checked before they count.

`DYNZOO_WEIGHTS` says where they are kept: a folder, or a `file://`, `https://` or `http://` address
under which each preset has a folder of its name. `DYNZOO_HOME` is the cache, `~/.cache/dynzoo` by
default. What a file must be is said by the metadata that ship, and by nobody else.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from dynzoo.utils.files import sha256, write_atomically
from dynzoo.utils.strict_json import short
from dynzoo.utils.version import version

__all__ = ["DownloadError", "complete", "download", "home", "missing"]

SECONDS = 30.0  # without a byte, after which a server is given up
_ATTEMPTS = 4
_BLOCK = 2**18
_SLACK = 64 * 2**20  # bytes of a file beside eight for each weight
_SCHEMES = ("file", "http", "https")


class DownloadError(OSError):
    """A file could not be had, or is not the one that was asked for.

    Example:

    >>> from dynzoo.zoo.downloads import DownloadError
    >>> issubclass(DownloadError, OSError)
    True
    """


class _CutError(Exception):
    """The connection ended early; what came is kept."""


class _Source(NamedTuple):
    """An open file of a server's: where it begins, and how long it is as a whole, if known."""

    stream: Any
    begins: int
    total: int | None


def home() -> Path:
    """The cache: ``DYNZOO_HOME``, else ``dynzoo`` in the user's folder of caches.

    Example:

    >>> from dynzoo.zoo.downloads import home
    >>> home().is_absolute()
    True
    """
    given = os.environ.get("DYNZOO_HOME")
    if given:
        return Path(given).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "dynzoo"


def missing(folder: Path, metadata: dict[str, Any]) -> list[str]:
    """Names of the files of a preset that are neither in its folder nor in the cache.

    Args:
        folder: the preset's folder, with its metadata.
        metadata: as ``dynzoo.zoo.files.read_metadata`` gives them.

    Example:

    >>> from dynzoo.zoo import downloads, shipped
    >>> name = "isometric_tiny_cifar10"
    >>> downloads.missing(shipped.find(name), shipped.presets()[name])
    []
    """
    absent = [name for name in metadata["files"] if not (folder / name).exists()]
    cache = _cache(folder) if absent else folder
    return [name for name in absent if not (cache / name).exists()]


def complete(folder: Path, metadata: dict[str, Any]) -> Path:
    """A folder with all files of a preset that ships: its own, or one in the cache.

    Files that are in the cache already are not asked for again.

    Args:
        folder: the preset's folder, with its metadata.
        metadata: as ``dynzoo.zoo.files.read_metadata`` gives them.

    Raises:
        DownloadError: in one line, if a file cannot be had or is another one.
    """
    listed = metadata["files"]
    if all((folder / name).exists() for name in listed):
        return folder
    cache = _cache(folder)
    largest = 8 * int(metadata.get("parameters") or 0) + _SLACK
    with _alone(cache):
        for name in ("metadata.json", *listed):
            if (folder / name).exists() and not (cache / name).exists():
                write_atomically(cache / name, (folder / name).read_bytes())
        for name in missing(folder, metadata):
            address = _address(folder.name, name)
            download(address, cache / name, listed[name], largest)
    return cache


def _cache(folder: Path) -> Path:
    """Where the files of a preset go that did not ship: of these metadata, and of no others."""
    return home() / "presets" / f"{folder.name}-{sha256(folder / 'metadata.json')[:12]}"


def download(address: str, target: Path, expected: str, largest: int = 2**34) -> None:
    """Brings a file here: whole and as expected, or not at all.

    What came before a connection was cut stays beside the target, and the next call goes on there.

    Args:
        address: a ``file://``, ``http://`` or ``https://`` address.
        target: the file to write.
        expected: its SHA-256, in hexadecimal.
        largest: bytes after which the file cannot be the one.

    Raises:
        DownloadError: in one line; the target is as it was.

    Example:

    >>> import hashlib
    >>> from pathlib import Path
    >>> from dynzoo.zoo.downloads import download
    >>> size = Path("source.bin").write_bytes(b"weights")
    >>> address = Path("source.bin").absolute().as_uri()
    >>> download(address, Path("copy.bin"), hashlib.sha256(b"weights").hexdigest())
    >>> Path("copy.bin").read_bytes()
    b'weights'
    """
    partial = target.with_name(target.name + ".partial")
    resumed = partial.exists()
    with _progress(target.name) as advance:
        _bring(address, partial, largest, advance)
        if (found := sha256(partial)) != expected and resumed:
            # what lay here was of another file, or damaged: once more from the start
            partial.unlink()
            _bring(address, partial, largest, advance)
            found = sha256(partial)
    if found != expected:
        partial.unlink()
        raise DownloadError(
            f"{address} is not the file that was asked for: its SHA-256 is {found[:16]}..., "
            f"expected {expected[:16]}... Nothing of it was kept."
        )
    os.replace(partial, target)


def _bring(address: str, partial: Path, largest: int, advance: Callable[..., None]) -> None:
    for attempt in range(_ATTEMPTS):
        before = partial.stat().st_size if partial.exists() else 0
        try:
            _read(address, partial, before, largest, advance)
            return
        except (_CutError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            have = partial.stat().st_size if partial.exists() else 0
            if attempt + 1 == _ATTEMPTS or have <= before:
                kept = f"{have:,} bytes are kept, and the next call goes on" if have else "no data"
                raise DownloadError(f"{address} was cut: {short(error)} ({kept}).") from None
        except urllib.error.HTTPError as error:
            error.close()  # it is the answer too, with its socket
            if error.code == 416 and before:  # longer than the file: it is none of its parts
                partial.unlink()
                continue
            raise DownloadError(
                f"{address} is not to be had: HTTP {error.code} {short(error.reason)}."
            ) from None
        except urllib.error.URLError as error:
            raise DownloadError(
                f"{address} cannot be reached: {short(error.reason)}. `DYNZOO_WEIGHTS` says where "
                "weights are kept: a folder or an address."
            ) from None


def _read(
    address: str, partial: Path, offset: int, largest: int, advance: Callable[..., None]
) -> None:
    with contextlib.ExitStack() as stack:
        source = _open(address, offset)
        stack.callback(source.stream.close)
        if source.total is not None and source.total > largest:
            raise DownloadError(
                f"{address} says that it has {source.total:,} bytes, more than the preset can "
                f"have ({largest:,}). Nothing of it was kept."
            )
        file: BinaryIO = stack.enter_context(open(partial, "ab" if source.begins else "wb"))
        have = source.begins
        while block := source.stream.read(_BLOCK):
            have += len(block)
            if have > largest:
                file.truncate(0)
                raise DownloadError(
                    f"{address} does not end: more than {largest:,} bytes, which the preset cannot "
                    "have. Nothing of it was kept."
                )
            file.write(block)
            advance(have, source.total)
        file.flush()
        os.fsync(file.fileno())
    if source.total is not None and have < source.total:
        raise _CutError(f"{have:,} of {source.total:,} bytes came")


def _open(address: str, offset: int) -> _Source:
    parts = urllib.parse.urlsplit(address)
    if parts.scheme == "file":
        path = Path(urllib.request.url2pathname(parts.path))
        try:
            stream = open(path, "rb")
        except OSError as error:
            raise DownloadError(f"{path} cannot be read: {error.strerror}.") from None
        total = path.stat().st_size
        begins = offset if offset <= total else 0
        stream.seek(begins)
        return _Source(stream, begins, total)
    headers = {"User-Agent": f"dynzoo/{version()}", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    # the address is the user's own, of a scheme that was checked, and what comes is hashed
    request = urllib.request.Request(address, headers=headers)
    stream = urllib.request.urlopen(request, timeout=SECONDS)
    if stream.headers.get_content_type() == "text/html":
        stream.close()
        raise DownloadError(
            f"{address} is a web page and no file: a server that asks who you are, or that does "
            "not have it. Nothing of it was kept."
        )
    length = stream.headers.get("Content-Length", "")
    begins = offset if stream.status == 206 and _starts_at(stream, offset) else 0
    if stream.status == 206 and not begins:
        stream.close()
        raise DownloadError(f"{address} was asked to go on at byte {offset:,}, and does not.")
    return _Source(stream, begins, begins + int(length) if length.isdecimal() else None)


def _starts_at(stream: Any, offset: int) -> bool:
    return stream.headers.get("Content-Range", "").startswith(f"bytes {offset}-")


def _address(preset: str, name: str) -> str:
    base = os.environ.get("DYNZOO_WEIGHTS", "").strip()
    if not base:
        raise DownloadError(
            f"The weights of {preset} do not come with this installation, and `DYNZOO_WEIGHTS` "
            "does not say where they are kept: the folder `pretrained` of a checkout or source "
            "distribution of dynzoo, or a file:// or https:// address with the same in it."
        )
    scheme, separator, _ = base.partition("://")
    if not separator:
        base = Path(base).expanduser().absolute().as_uri()
    elif scheme.lower() not in _SCHEMES:
        raise DownloadError(
            "`DYNZOO_WEIGHTS` must be a folder, or a file:// or https:// address. "
            f"Received: {short(base, 120)}"
        )
    return "/".join([base.rstrip("/"), *map(urllib.parse.quote, (preset, name))])


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder for this process: another one waits, and finds what it wanted."""
    import fcntl  # not everywhere, and needed by downloads alone

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a")
    except OSError as error:
        raise DownloadError(
            f"The cache {folder} cannot be written to: {error.strerror}. `DYNZOO_HOME` names "
            "another one."
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[..., None]]:
    """A bar on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    shown = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
    if not console.is_terminal:
        yield lambda have, total: None
        return
    with shown:
        task = shown.add_task(name, total=None)
        yield lambda have, total: shown.update(task, completed=have, total=total)
