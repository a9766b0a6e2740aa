"""Where data sets come from, and how a file is known to be the right one.

A data set is fetched from, in order: an archive the user names, the cache (data/raw/<name>/), the publisher's site, a
mirror of last resort. Nothing is believed for its name or place: an archive counts when the members that are read have
the pinned SHA-256, so a re-zipped copy passes and a changed file does not. Members are read in memory, never unpacked
to paths an archive could choose, and never larger than the pinned size allows.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from recsys_utils import catalogue, synthetic
from recsys_utils.crosswalk import split_year
from recsys_utils.interfaces import ITEM, RATING, TIMESTAMP, USER, InputError, Scale

Say = Callable[[str], None]
Files = Mapping[str, bytes]

_TIMEOUT = httpx.Timeout(30, connect=5)
_ATTEMPTS = 4
_MIRROR_SECONDS = 300
_MIB = 1 << 20
# whatever zipfile raises for a file that is cut, overwritten, encrypted or packed in a way it does not know
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


# ---- what is known about each data set


@dataclass(frozen=True)
class Member:
    """A file inside an archive: SHA-256 and size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Layout:
    """One form in which a data set is published; ``members`` by file name, in whatever folder they lie.

    ``ratings`` gives user_id, item_id (as published), rating, timestamp; ``films`` item_id, title, year, genres;
    ``graph``, where there is one, item_id, relation, entity. ``graph_members`` are read for the graph alone.
    """

    members: Mapping[str, Member]
    ratings: Callable[[Files], pd.DataFrame]
    films: Callable[[Files], pd.DataFrame]
    graph_members: Mapping[str, Member] = field(default_factory=dict)
    graph: Callable[[Files], pd.DataFrame] | None = None


@dataclass(frozen=True)
class Wheel:
    """A Python package that carries a data set; downloaded by hash, never installed or imported."""

    requirement: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Dataset:
    """An entry of the registry; a set without a url is generated."""

    name: str
    prefix: str
    scale: Scale
    licence: str
    may_redistribute: bool
    cite: str
    url: str = ""
    md5: str = ""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    mirror: Wheel | None = None
    has_time: bool = True
    has_billing_order: bool = False
    synthetic: synthetic.Size | None = None

    @property
    def file(self) -> str:
        return PurePosixPath(self.url).name


# ---- parsers


def _table(text: bytes, separator: str, columns: list[str], *, header: bool, encoding: str = "utf-8") -> pd.DataFrame:
    """A plain separated table, every field a string, nothing quoted and nothing taken for missing."""
    return pd.read_csv(
        io.BytesIO(text), sep=separator, names=columns, header=0 if header else None, dtype=str, quoting=3,
        keep_default_na=False, encoding=encoding,
    )  # fmt: skip


def _typed(ratings: pd.DataFrame) -> pd.DataFrame:
    return ratings.astype({RATING: np.float32, TIMESTAMP: np.int64})[[USER, ITEM, RATING, TIMESTAMP]]


def _films(ids: pd.Series, titles: pd.Series, genres: list[list[str]]) -> pd.DataFrame:
    """Films from titles that end in their year, as MovieLens writes them."""
    parts = [split_year(t) for t in titles]
    years = pd.array([y for _, y in parts], dtype="Int64")
    return pd.DataFrame({ITEM: ids.to_numpy(), "title": [t for t, _ in parts], "year": years, "genres": genres})


def _ratings_100k(files: Files) -> pd.DataFrame:
    return _typed(_table(files["u.data"], "\t", [USER, ITEM, RATING, TIMESTAMP], header=False))


def _films_100k(files: Files) -> pd.DataFrame:
    genres = [line.split("|")[0] for line in files["u.genre"].decode("latin-1").split()]
    columns = [ITEM, "title", "release", "video", "imdb", *genres]
    table = _table(files["u.item"], "|", columns, header=False, encoding="latin-1")
    flags = table[genres].to_numpy() == "1"
    return _films(table[ITEM], table["title"], [[g for g, on in zip(genres, row, strict=True) if on] for row in flags])


def _ratings_wheel(files: Files) -> pd.DataFrame:
    return _typed(_table(files["ml-100k.inter"], "\t", [USER, ITEM, RATING, TIMESTAMP], header=True))


def _films_wheel(files: Files) -> pd.DataFrame:
    table = _table(files["ml-100k.item"], "\t", [ITEM, "title", "year", "genres"], header=True)
    # the packagers cut the last bracket off the title and called it the year: join what they cut, mend their one typo
    titles = (table["title"] + " (" + table["year"] + ")").replace("unkonwn (unkonwn)", "unknown")
    return _films(table[ITEM], titles, [g.split() for g in table["genres"]])


def _graph_wheel(files: Files) -> pd.DataFrame:
    link = _table(files["ml-100k.link"], "\t", [ITEM, "film"], header=True)
    facts = _table(files["ml-100k.kg"], "\t", ["film", "relation", "entity"], header=True)
    return facts.merge(link, on="film")[[ITEM, "relation", "entity"]]


# ---- the registry

_RECBOLE = Wheel(
    requirement="recbole==1.2.1",
    file="recbole-1.2.1-py3-none-any.whl",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
)
_100K_ZIP = Layout(
    members={
        "u.data": Member("06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490", 1_979_173),
        "u.item": Member("553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701", 236_344),
        "u.genre": Member("9757e0d3e6b298159a80dd48eaf938114690e911e39af97a76949ef1663610bb", 202),
    },
    ratings=_ratings_100k,
    films=_films_100k,
)
_100K_WHEEL = Layout(
    members={
        "ml-100k.inter": Member("4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff", 1_979_230),
        "ml-100k.item": Member("51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532", 66_632),
    },
    ratings=_ratings_wheel,
    films=_films_wheel,
    graph_members={
        "ml-100k.kg": Member("200a0636fa07c218119a42e5bac7aa3e26e3665a6f919c1b22909bd412b14779", 3_515_608),
        "ml-100k.link": Member("524dca2c3d62619688ab99b3ec53ea2acb9b64d38eafec3e02bdd0dc6bb7d948", 21_507),
    },
    graph=_graph_wheel,
)
_HARPER = (
    "F. Maxwell Harper and Joseph A. Konstan. 2015. The MovieLens Datasets: History and Context. "
    "ACM Transactions on Interactive Intelligent Systems 5, 4. https://doi.org/10.1145/2827872"
)
REGISTRY: dict[str, Dataset] = {
    "smoke": Dataset(
        name="smoke",
        prefix="smoke_",
        scale=Scale(1, 5),
        licence="Generated by this project; no restrictions.",
        may_redistribute=True,
        cite="recsys_utils.synthetic",
        has_billing_order=True,
        synthetic=synthetic.SMOKE,
    ),
    "ml-100k": Dataset(
        name="ml-100k",
        prefix="ml_",
        scale=Scale(1, 5),
        licence=(
            "MovieLens 100K, GroupLens Research, University of Minnesota: research use with acknowledgement; no "
            "redistribution without separate permission; no commercial use without permission; no endorsement implied."
        ),
        may_redistribute=False,
        cite=_HARPER,
        url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
        md5="0e33842e24a9c977be4e0107933c0723",
        layouts={"official zip": _100K_ZIP, "recbole wheel": _100K_WHEEL},
        mirror=_RECBOLE,
    ),
}


def describe(name: str) -> Dataset:
    """The registry's entry; InputError names what there is."""
    if name not in REGISTRY:
        raise InputError(f"There is no data set {name!r}; known are: {', '.join(sorted(REGISTRY))}.")
    return REGISTRY[name]


# ---- archives


@dataclass(frozen=True)
class Archive:
    """A verified archive: which layout it has and where in it the layout's folder is."""

    path: Path
    layout: Layout
    folder: str
    kind: str

    def read(self, members: Mapping[str, Member]) -> dict[str, bytes]:
        """The content of members, checked against their SHA-256 again (the file may have changed since)."""
        with zipfile.ZipFile(self.path) as bundle:
            return {name: _member(self.path, bundle, self.folder, name, pin) for name, pin in members.items()}


def open_archive(path: Path, dataset: Dataset) -> Archive:
    """Find and verify a data set in a zip file.

    Raises
    ------
    InputError : no such file, not a zip, cut short, members missing, or a member that differs from the pinned one;
        names the file, the expected and the found checksum.
    """
    if not path.is_file():
        raise InputError(f"There is no archive {path}; give the path of a zip of {dataset.name} ({dataset.url}).")
    try:
        with zipfile.ZipFile(path) as bundle:
            found = [PurePosixPath(i.filename) for i in bundle.infolist() if not i.is_dir()]
            names = {(str(p.parent), p.name) for p in found}
            for kind, layout in dataset.layouts.items():
                first = next(iter(layout.members))
                folders = sorted(f for f, n in names if n == first and all((f, m) in names for m in layout.members))
                for folder in folders:
                    for name, pin in layout.members.items():
                        _member(path, bundle, folder, name, pin)
                    return Archive(path, layout, folder, kind)
    except _UNREADABLE as error:
        raise InputError(
            f"{path} can't be read as a zip archive ({error}); it is {path.stat().st_size:,} bytes long, "
            f"md5 expected {dataset.md5}, found {_digest(path, 'md5')}. {_remedy(dataset)}"
        ) from None
    wanted = " or ".join(", ".join(layout.members) for layout in dataset.layouts.values())
    raise InputError(
        f"{path} is a zip, but not of {dataset.name}: it has no folder with {wanted}. Its md5 "
        f"is {_digest(path, 'md5')}, expected {dataset.md5} or another zip of the same files. {_remedy(dataset)}"
    )


def _member(path: Path, bundle: zipfile.ZipFile, folder: str, name: str, pin: Member) -> bytes:
    """Read one member into memory and check its SHA-256; one that declares far more than its pinned size is refused."""
    inner = name if folder == "." else f"{folder}/{name}"
    info = bundle.getinfo(inner)
    if info.file_size > 4 * pin.size + _MIB:  # zipfile never yields more than is declared here
        raise InputError(
            f"{path}: {inner} would unpack to {info.file_size:,} bytes where {pin.size:,} are published; not read."
        )
    content = bundle.read(info)
    found = hashlib.sha256(content).hexdigest()
    if found != pin.sha256:
        raise InputError(
            f"{path}: {inner} is not the file that was published: SHA-256 expected {pin.sha256}, found {found}; "
            "fetch the archive anew."
        )
    return content


def _remedy(dataset: Dataset) -> str:
    return f"Fetch it anew from {dataset.url}, or leave dataset.archive empty to have it fetched."


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()


# ---- fetching


@dataclass(frozen=True)
class Tables:
    """What a data set holds, in the study's columns.

    Attributes
    ----------
    ratings : user_id (with prefix), item_id, rating float32, timestamp int64, in published order
    items : columns of items.parquet in natural order of item_id
    truth : the generator's truth where the data are synthetic
    """

    ratings: pd.DataFrame
    items: pd.DataFrame
    truth: synthetic.Synthetic | None = None


@dataclass(frozen=True)
class Fetched:
    """A data set at hand: verified archives (none for generated data), where they came from, what to know."""

    dataset: Dataset
    archive: Archive | None
    graph: Archive | None
    source: str
    notes: tuple[str, ...] = ()

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of every member that is read."""
        pins = dict(self.archive.layout.members) if self.archive else {}
        pins |= self.graph.layout.graph_members if self.graph else {}
        return {name: pin.sha256 for name, pin in sorted(pins.items())}

    def tables(self) -> Tables:
        """Read or generate the tables."""
        if self.dataset.synthetic is not None:
            truth = synthetic.generate(self.dataset.synthetic)
            return Tables(truth.ratings, catalogue.build(truth.items, None), truth)
        assert self.archive is not None
        files = self.archive.read(self.archive.layout.members)
        ratings = self.archive.layout.ratings(files)
        ratings[USER] = self.dataset.prefix + ratings[USER]
        facts = None
        if self.graph is not None and self.graph.layout.graph is not None:
            facts = self.graph.layout.graph(self.graph.read(self.graph.layout.graph_members))
        return Tables(ratings, catalogue.build(self.archive.layout.films(files), facts))

    def meta(self) -> dict[str, Any]:
        """The part of meta.json that describes the data set."""
        d = self.dataset
        return {
            "dataset": d.name,
            "scale": {"lo": d.scale.lo, "hi": d.scale.hi, "liked_override": d.scale.liked_override},
            "user_prefix": d.prefix,
            "has_time": d.has_time,
            "has_billing_order": d.has_billing_order,
            "licence": d.licence,
            "may_redistribute": d.may_redistribute,
            "cite": d.cite,
            "source": self.source,
            "graph": "generated" if d.synthetic else self.graph.kind if self.graph else "absent",
            "hashes": self.hashes,
            "notes": list(self.notes),
        }


def fetch(name: str, *, archive: Path | None = None, raw: Path, say: Say = lambda text: None) -> Fetched:
    """Have a data set at hand: a given archive, the cache, the publisher's site, the mirror, in that order.

    Parameters
    ----------
    name : a key of ``REGISTRY``
    archive : a local zip (or the mirror's wheel); read where it lies, never moved or changed
    raw : folder of caches; this set's files go to raw/<name>/. A file there that fails its checksum is renamed to
        ``*.rejected-<hash>`` and not used.
    say : receives one-line notices, which are also kept in ``notes``

    Raises
    ------
    InputError : unknown name, an unusable given archive, or no route led to the data.

    >>> fetch("smoke", raw=Path("unused")).tables().ratings.columns.tolist()
    ['user_id', 'item_id', 'rating', 'timestamp']
    """
    dataset = describe(name)
    archive = archive.expanduser() if archive is not None else None
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        say(text)

    if dataset.synthetic is not None:
        if archive is not None:
            raise InputError(f"{name} is generated and has no archive; leave dataset.archive empty (got {archive}).")
        return Fetched(dataset, None, None, "generated")
    cache = raw / name
    if archive is not None:
        found, source = open_archive(archive, dataset), "archive given"
    else:
        found, source = _automatic(dataset, cache, note)
    return Fetched(dataset, found, _find_graph(dataset, found, cache, note), source, tuple(notes))


def fetch_command(name: str, archive: Path | None, *, raw: Path, say: Say = print) -> str:
    """Fill the cache ``raw`` (``recsys fetch``), from an archive when one is given; returns what was done.

    Raises
    ------
    InputError : as :func:`fetch`.
    """
    archive = archive.expanduser() if archive is not None else None
    fetched = fetch(name, archive=archive, raw=raw, say=say)
    dataset = fetched.dataset
    if fetched.archive is None:
        return f"{name} is generated when a run needs it; there is nothing to fetch."
    target = raw / name / _cache_name(dataset, fetched.archive)
    if archive is not None and archive.resolve() != target.resolve():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        shutil.copyfile(archive, part)
        part.replace(target)
    graph = fetched.graph.kind if fetched.graph else "absent"
    where = f"{name} is at {target} ({fetched.source}, {fetched.archive.kind}; checksums match)"
    return f"{where}; film graph: {graph}.\n{dataset.licence}"


def _cache_name(dataset: Dataset, archive: Archive) -> str:
    return dataset.mirror.file if dataset.mirror and archive.layout.graph else dataset.file


def _automatic(dataset: Dataset, cache: Path, note: Say) -> tuple[Archive, str]:
    problems: list[str] = []

    def heard(text: str) -> None:
        problems.append(text)
        note(text)

    wheel = [dataset.mirror.file] if dataset.mirror else []
    routes: list[tuple[str, Callable[[], Archive | None]]] = [
        *(("cache", partial(_cached, cache / file, dataset, heard)) for file in (dataset.file, *wheel)),
        ("official site", partial(_from_site, dataset, cache, heard)),
        ("mirror", partial(_from_mirror, dataset, cache, heard)),
    ]
    for source, route in routes:
        found = route()
        if found is not None:
            return found, source
    raise InputError(
        f"{dataset.name} can't be fetched. {' '.join(problems)} Get the zip in another way and name it: "
        f"recsys fetch {dataset.name} --archive FILE.zip, or the parameter dataset.archive."
    )


def _cached(path: Path, dataset: Dataset, note: Say) -> Archive | None:
    """The archive at ``path`` if it is the right one; a wrong one is renamed, so that nothing picks it up again."""
    if not path.exists():
        return None
    try:
        return open_archive(path, dataset)
    except InputError as error:
        rejected = path.with_name(f"{path.name}.rejected-{_digest(path, 'sha256')[:8]}")
        path.replace(rejected)
        note(f"{error} It was set aside as {rejected.name}.")
        return None


def _from_site(dataset: Dataset, cache: Path, note: Say) -> Archive | None:
    """Download the publisher's zip; None (and a notice) when the site can't be reached or serves something else."""
    cache.mkdir(parents=True, exist_ok=True)
    part = cache / f"{dataset.file}.part"
    # a leftover may turn out to be the beginning of another file: then once more from the start
    for _ in range(2 if part.exists() else 1):
        try:
            download(dataset.url, part)
        except httpx.HTTPError as error:
            why = (str(error) or type(error).__name__).splitlines()[0]
            note(f"{dataset.url} can't be fetched ({why}).")
            return None
        if _cached(part, dataset, note):
            break
    else:
        return None
    if (md5 := _digest(part, "md5")) != dataset.md5:  # the members decide, but this deserves a word
        note(f"{dataset.url} was packed anew (md5 {md5}, not {dataset.md5}); its members are the pinned ones.")
    return open_archive(part.replace(cache / dataset.file), dataset)


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


def _from_mirror(dataset: Dataset, cache: Path, note: Say) -> Archive | None:
    """Download the wheel that carries the data set with pip, pinned by hash; None and a notice when that fails."""
    if dataset.mirror is None:
        return None
    wheel = dataset.mirror
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder) / "requirements.txt"
        pins.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
        options = "--no-deps --require-hashes --only-binary=:all: --disable-pip-version-check --quiet --retries 2"
        command = [sys.executable, "-m", "pip", "download", *options.split(), "--requirement", str(pins)]
        command += ["--dest", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_MIRROR_SECONDS, check=False)
            failure = "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1:] or ["no message"]
        except subprocess.TimeoutExpired:
            failure = [f"no answer in {_MIRROR_SECONDS} s"]
        if failure:
            note(f"The mirror {wheel.requirement} can't be fetched with pip ({failure[0]}).")
            return None
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f"{wheel.file}.part"
        shutil.copyfile(Path(folder) / wheel.file, part)
    part.replace(cache / wheel.file)
    return _cached(cache / wheel.file, dataset, note)


def _find_graph(dataset: Dataset, found: Archive, cache: Path, note: Say) -> Archive | None:
    """The archive that holds the film graph: the one at hand, the cache, the mirror; None when it can't be had."""
    if not any(layout.graph for layout in dataset.layouts.values()):
        return None
    routes: list[Callable[[], Archive | None]] = [lambda: found, partial(_from_mirror, dataset, cache, note)]
    if dataset.mirror is not None:
        routes.insert(1, partial(_cached, cache / dataset.mirror.file, dataset, note))
    for route in routes:
        archive = route()
        if archive is None or archive.layout.graph is None:
            continue
        try:
            archive.read(archive.layout.graph_members)
        except (InputError, KeyError, *_UNREADABLE) as error:
            note(f"The film graph in {archive.path.name} is unusable: {error}")
            continue
        return archive
    note("The film graph can't be had: films have genres, but no directors, actors, writers or subjects.")
    return None
