"""Zip files and downloads that are not believed for their name: verified by content, read without unpacking."""

from __future__ import annotations

import fcntl
import hashlib
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import httpx
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from recsys_utils.base import InputError

_TIMEOUT = httpx.Timeout(30, connect=5)
_ATTEMPTS = 4
_MIB = 1 << 20
_RATIO = 200  # tables of ratings shrink to a quarter, sparse genome scores to a twentieth
# whatever zipfile raises for a file that is cut, overwritten, encrypted or packed in a way it does not know
UNREADABLE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, OSError, UnicodeError,
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A file inside an archive as published: hex digest (64 digits: SHA-256, 32: MD5) and size in bytes.

    ``Member()`` is a file that is not pinned, because its edition changes or only the whole archive has a checksum.
    """

    digest: str = ""
    size: int = 0


@dataclass(frozen=True)
class Folder:
    """A folder of a zip file; members are found by name in it and never written to a path the archive could choose."""

    path: Path
    name: str

    @property
    def members(self) -> set[str]:
        """The names of the files in this folder."""
        with zipfile.ZipFile(self.path) as bundle:
            found = [PurePosixPath(i.filename) for i in bundle.infolist() if not i.is_dir()]
        return {p.name for p in found if str(p.parent) == self.name}

    def chunks(self, name: str, pin: Member = Member()) -> Iterator[bytes]:
        """The content of a member, piece by piece; checked against its pin when the last piece has been taken.

        Raises
        ------
        InputError : it declares far more bytes than are published (or than its packed size can honestly hold), or its
            checksum is another one.
        """
        inner = name if self.name == "." else f"{self.name}/{name}"
        with zipfile.ZipFile(self.path) as bundle:
            # not getinfo: some tools write entries as ./folder/name
            info = next(i for i in bundle.infolist() if PurePosixPath(i.filename) == PurePosixPath(inner))
            size = info.file_size  # zipfile never yields more than is declared here
            if size > _MIB + (4 * pin.size if pin.size else _RATIO * info.compress_size):
                known = f"{pin.size:,} are published" if pin.size else f"{info.compress_size:,} are packed"
                raise InputError(f"{self.path}: {inner} would unpack to {size:,} bytes where {known}; not read.")
            digest = hashlib.new("md5" if len(pin.digest) == 32 else "sha256")
            with bundle.open(info) as stream:
                while piece := stream.read(_MIB):
                    digest.update(piece)
                    yield piece
        if pin.digest and digest.hexdigest() != pin.digest:
            kind = digest.name.upper().replace("SHA", "SHA-")
            raise InputError(
                f"{self.path}: {inner} is not the file that was published: {kind} expected {pin.digest}, "
                f"found {digest.hexdigest()}; fetch the archive anew."
            )

    def read(self, members: Mapping[str, Member]) -> dict[str, bytes]:
        """The content of members, checked; InputError when the archive is damaged."""
        with self._damage():
            return {name: b"".join(self.chunks(name, pin)) for name, pin in members.items()}

    def copy(self, name: str, pin: Member, target: Path) -> Path:
        """Write a member to ``target`` without holding it in memory, checked as in :meth:`read`; returns ``target``."""
        with self._damage(), target.open("wb") as out:
            out.writelines(self.chunks(name, pin))
        return target

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except UNREADABLE as error:
            raise InputError(f"{self.path} is damaged ({error}); fetch it anew.") from None

    def first_line(self, name: str) -> str:
        """The first line of a member, without byte order mark, quotes and line end."""
        start = next(self.chunks(name), b"").split(b"\n", 1)[0]
        return start[:1000].decode("utf-8-sig", errors="replace").strip().replace('"', "")


def folders_with(path: Path, names: Iterable[str]) -> list[Folder]:
    """The folders of a zip that hold all these files, in order of their names."""
    wanted = set(names)
    found: dict[str, set[str]] = {}
    with zipfile.ZipFile(path) as bundle:
        for inner in (PurePosixPath(i.filename) for i in bundle.infolist() if not i.is_dir()):
            found.setdefault(str(inner.parent), set()).add(inner.name)
    return [Folder(path, folder) for folder, files in sorted(found.items()) if wanted <= files]


def digest_of(path: Path, algorithm: str) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


@contextmanager
def alone(folder: Path, say: Callable[[str], object]) -> Iterator[None]:
    """Be the only process that fills ``folder``; others wait, and say so.

    The lock is the kernel's, on the folder itself, and ends with the process that holds it: no stale one can exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another process is fetching into {folder}: waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _transient(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    return isinstance(error, (httpx.ReadTimeout, httpx.ReadError, httpx.RemoteProtocolError))


def download(url: str, part: Path) -> None:
    """Stream a URL to ``part``, going on where an earlier attempt stopped; shows progress on a terminal.

    A broken connection or a server error is tried again with growing pauses; a host that can't be reached at all is
    not, so that a mirror can take over at once.

    Raises
    ------
    httpx.HTTPError : the last attempt's failure; what was received stays in ``part``.
    """
    for attempt in Retrying(
        retry=retry_if_exception(_transient), stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential(multiplier=0.5, max=8), reraise=True,
    ):  # fmt: skip
        with attempt:
            _download_once(url, part)


def _download_once(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with (
        httpx.stream("GET", url, headers=headers, timeout=_TIMEOUT, follow_redirects=True) as response,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        if response.status_code == 416:  # nothing beyond what we have: complete, or not the same file
            return
        response.raise_for_status()
        resuming = response.status_code == 206
        length = response.headers.get("Content-Length")
        total = int(length) + have * resuming if length else None
        task = progress.add_task(PurePosixPath(url).name, total=total, completed=have * resuming)
        with part.open("ab" if resuming else "wb") as out:
            for chunk in response.iter_raw():  # as received: a larger buffer would be lost with the connection
                out.write(chunk)
                progress.advance(task, len(chunk))


def published_md5(url: str) -> str:
    """The checksum a publisher states in URL.md5 (``MD5 (x.zip) = <hex>`` or ``<hex>  x.zip``).

    Raises
    ------
    httpx.HTTPError : it can't be fetched, or holds no checksum.
    """
    response = httpx.get(f"{url}.md5", timeout=_TIMEOUT, follow_redirects=True).raise_for_status()
    words = [w.lower() for w in response.text.split() if len(w) == 32 and set(w.lower()) <= set("0123456789abcdef")]
    if len(words) != 1:
        raise httpx.DecodingError(f"{url}.md5 states no checksum", request=response.request)
    return words[0]
