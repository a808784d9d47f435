"""Files elsewhere: listed and fetched through fsspec, by their URL. Credentials come from the environment alone."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.errors import InputError, StageFailed

_VERSIONS = ("ETag", "etag", "VersionId", "version_id", "checksum", "md5", "blob_id", "sha256")
"""What file systems call that which changes when, and only when, the content of a file does."""


def _open(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        InputError: if there is no library for it.
    """
    import fsspec

    protocol = url.partition("://")[0]
    try:
        file_system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        mend = (
            "pip install 'scratchlm[s3]'" if protocol in ("s3", "s3a") else "see fsspec's list of protocols"
        )
        raise InputError(f"ingest.sources: {url!r} cannot be read ({error}): {mend}") from error
    return file_system, path


def _version(url: str, info: dict[str, Any]) -> str:
    found = next((f"{name} {info[name]}" for name in _VERSIONS if info.get(name)), None)
    if found is None:
        raise InputError(
            f"ingest.sources: the server of {url!r} tells no ETag and no version, so a change would go unseen: download it"
        )
    return found


def _is_file(file_system: Any, path: str) -> bool:
    """Whether a path is one file. To a web server the list of a folder is a page like others, but for the end of its name."""
    return not path.endswith("/") and bool(file_system.isfile(path))


_SCHEME = re.compile(
    r"(mailto|javascript|tel|sms|data|magnet|about|news|urn|blob|geo|skype|whatsapp):|[a-z][a-z0-9+.-]*://",
    re.IGNORECASE,
)
"""What a link to elsewhere begins with. No other word before a colon: fsspec joins `b:1.txt` to the folder as any name."""
_DEEPEST = 30


def _links_of(file_system: Any, folder: str) -> list[str]:
    """Where the list of a web server's folder links to below it."""
    try:
        links = [info["name"] for info in file_system.ls(folder, detail=True)]
    except FileNotFoundError:
        # Of a list without links fsspec asks again, for a page of the folder's name.
        if not file_system.exists(folder):
            raise
        return []
    # A page behind a proxy may say https where it was asked for by http.
    address, found = folder.partition("://")[2], set()
    for link in links:
        _, _, linked = link.partition("://")
        relative = linked.removeprefix(address).partition("#")[0]
        below = re.sub(r"^(\./)+", "", relative)
        parts = below.split("/")
        # But for the folder itself, what lies above it or elsewhere, what is no page, and what sorts the list.
        is_below = linked.startswith(address) and bool(below) and ".." not in parts
        if is_below and not _SCHEME.match(relative) and not below.startswith("?") and parts[-1][:1] != "?":
            found.add(below)
    return sorted(found)


def _linked_files(file_system: Any, folder: str, depth: int = 0) -> Iterator[str]:
    """The files that the list of a web server's folder has links to, and those of folders below it."""
    if depth > _DEEPEST:
        raise ValueError(f"{folder} is more than {_DEEPEST} folders deep: one of them links to itself")
    for below in _links_of(file_system, folder):
        if below.endswith("/"):
            yield from _linked_files(file_system, folder + below, depth + 1)
        else:
            yield folder + below


def _infos(file_system: Any, root: str) -> dict[str, dict[str, Any]]:
    """What is told of every file at or below a path; raises what a folder that cannot be listed raises."""
    from fsspec.spec import AbstractFileSystem

    if _is_file(file_system, root):
        return {root: file_system.info(root)}
    if root.startswith(("http://", "https://")):
        # fsspec's own walk takes the end of a folder's name away, asks for a page of that name, and passes over errors.
        return {path: file_system.info(path) for path in _linked_files(file_system, root)}
    # The walk that fsspec has for file systems without one of their own passes over folders that do not answer.
    is_general = type(file_system).find is AbstractFileSystem.find and not file_system.async_impl
    strict = {"on_error": "raise"} if is_general else {}
    found: dict[str, dict[str, Any]] = file_system.find(root, detail=True, **strict)
    return found


def list_remote(url: str) -> tuple[list[tuple[str, int, str]], list[tuple[str, str]]]:
    """Every file at or below a URL: its path below it, its size in bytes and its version; and what is hidden, and why.

    Raises:
        InputError: if it, or a folder or file below it, cannot be listed, or a server does not tell versions.
    """
    file_system, root = _open(url)
    try:
        file_system.invalidate_cache()
        infos = _infos(file_system, root)
    except Exception as error:  # each file system has its own
        raise InputError(
            f"ingest.sources: {url!r} cannot be listed ({type(error).__name__}: {str(error)[:200]}): correct the URL, "
            "or give the credentials that its fsspec file system reads from the environment"
        ) from error
    entries, skipped = [], []
    for path, info in infos.items():
        name = path.rsplit("/", 1)[-1] if path == root else path.removeprefix(root.rstrip("/") + "/")
        if any(part.startswith(".") for part in name.split("/")):
            skipped.append((name, "hidden"))
        elif info.get("size") is None:
            raise InputError(
                f"ingest.sources: the server of {url!r} does not tell the size of {name}: download it"
            )
        else:
            entries.append((name, int(info["size"]), _version(f"{url} ({name})", info)))
    return sorted(entries), sorted(skipped)


@contextmanager
def fetched(url: str, name: str, size: int, version: str) -> Iterator[Path]:
    """A copy of a file here, for as long as it is needed.

    Args:
        name: path below the URL, or its own name if the URL is that of a file.
        size, version: as they were listed.

    Raises:
        StageFailed: if it cannot be fetched, or is not what was listed any more.
    """
    file_system, root = _open(url)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / name.rsplit("/", 1)[-1]
        try:
            path = root if _is_file(file_system, root) else f"{root.rstrip('/')}/{name}"
            file_system.get_file(path, str(copy))
            file_system.invalidate_cache()
            now = file_system.info(path)
        except Exception as error:  # each file system has its own
            sentence = f"{name} of {url} cannot be fetched: {type(error).__name__}: {str(error)[:200]}"
            raise StageFailed(sentence, retryable=True) from error
        if copy.stat().st_size != size or _version(url, now) != version:
            raise StageFailed(
                "its source changed while it was read: run the same command again", retryable=True
            )
        yield copy
