"""Fetching: which file is believed, where it comes from, what happens to a bad one."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenacity import wait_none

from recsys_study import ingest
from recsys_utils.base import InputError
from recsys_utils.data import catalogue
from recsys_utils.data import fetch as datasets
from recsys_utils.data.fetch import Dataset, Fetched, Wheel, fetch, fetch_command
from recsys_utils.data.movielens import Member

GENRES = ["unknown", "Action", "Children's", "Film-Noir", "Sci-Fi"]
U_GENRE = "".join(f"{g}|{i}\n" for i, g in enumerate(GENRES))
# two films of ML-100K are irregular: one without year, one with a marker behind it; titles are Latin-1
U_ITEM = (
    "1|Misérables, Les (1995)|01-Jan-1995||http://x|0|1|0|0|1\n"
    "2|unknown||||1|0|0|0|0\n"
    "10|Land (1995) (V)|01-Jan-1995||http://x|0|0|1|1|0\n"
)
U_DATA = "196\t10\t3\t881250949\n22\t1\t5\t878887116\n22\t2\t1\t878887116\n"
OFFICIAL = {"u.data": U_DATA.encode(), "u.item": U_ITEM.encode("latin-1"), "u.genre": U_GENRE.encode()}
WHEEL = {
    "ml-100k.inter": f"user_id:token\titem_id:token\trating:float\ttimestamp:float\n{U_DATA}".encode(),
    "ml-100k.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tMisérables, Les\t1995\tAction Sci-Fi\n"
        "2\tunkonwn\tunkonwn\tunknown\n"
        "10\tLand (1995)\tV\tChildren's Film-Noir\n"
    ).encode(),
    "ml-100k.kg": b"h:token\tr:token\tt:token\nm.f1\tfilm.film.directed_by\tm.d\nm.x\tfilm.film.actor\tm.f1\n",
    # movieId 10 of the later editions is film 2 here (GoldenEye), and not film 10
    "ml-100k.link": b"item_id:token\tentity_id:token\n10\tm.f1\n",
}
ROOT = Path(__file__).resolve().parents[1]
MIRROR_NAME = "tinyfilms-1.0-py3-none-any.whl"


def pins(files: Mapping[str, bytes], *names: str) -> dict[str, Member]:
    return {n: Member(hashlib.sha256(files[n]).hexdigest(), len(files[n])) for n in names}


def pack(path: Path, files: Mapping[str, bytes], folder: str = "ml-100k/") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in files.items():
            bundle.writestr(folder + name, content)
    return path


@dataclass
class Site:
    """A web server that serves one file, can break off, and remembers what was asked for."""

    content: bytes = b""
    break_after: int | None = None
    status: int | None = None
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def site() -> Iterator[Site]:
    state = Site()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            state.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            if state.status or start >= len(state.content):
                self.send_response(state.status or 416)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = state.content[start:]
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: state.break_after] if state.break_after else body)
            state.break_after = None

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}/ml-100k.zip"
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, site: Site, tmp_path: Path) -> Dataset:
    """ML-100K's entry with a three-film data set behind it: same parsers, other checksums, a site of our own."""
    site.content = pack(tmp_path / "served.zip", OFFICIAL).read_bytes()
    real = datasets.REGISTRY["ml-100k"]
    official = replace(real.layouts["official zip"], members=pins(OFFICIAL, "u.data", "u.item", "u.genre"))
    wheel = replace(
        real.layouts["recbole wheel"],
        members=pins(WHEEL, "ml-100k.inter", "ml-100k.item"),
        extras=pins(WHEEL, "ml-100k.kg", "ml-100k.link"),
    )
    entry = replace(
        real,
        url=site.url,
        md5=hashlib.md5(site.content).hexdigest(),
        layouts={"official zip": official, "recbole wheel": wheel},
        mirror=Wheel("tinyfilms==1.0", MIRROR_NAME, "0" * 64),
    )
    monkeypatch.setitem(datasets.REGISTRY, "ml-100k", entry)
    monkeypatch.setattr(datasets, "_from_mirror", lambda *_: None)
    monkeypatch.setattr(datasets.download.retry, "wait", wait_none())  # type: ignore[attr-defined]
    return entry


def same(a: Fetched, b: Fetched) -> None:
    left, right = ingest.build(a), ingest.build(b)
    pd.testing.assert_frame_equal(left.ratings, right.ratings)
    columns = ["item_id", "title", "year", "genres"]
    pd.testing.assert_frame_equal(left.items[columns], right.items[columns])


def test_official_layout_is_read_as_published(tiny: Dataset, tmp_path: Path) -> None:
    got = ingest.build(fetch("ml-100k", archive=pack(tmp_path / "a.zip", OFFICIAL), raw=tmp_path / "raw"))
    assert got.ratings["user_id"].tolist() == ["ml_196", "ml_22", "ml_22"]
    assert got.ratings["rating"].tolist() == [3, 5, 1]
    assert got.ratings["timestamp"].tolist() == [881250949, 878887116, 878887116]
    assert got.items["item_id"].tolist() == ["1", "2", "10"]
    assert got.items["title"].tolist() == ["Misérables, Les", "unknown", "Land"]
    assert got.items["year"].fillna(0).tolist() == [1995, 0, 1995]
    assert got.items["genres"].tolist() == [["Action", "Sci-Fi"], ["unknown"], ["Children's", "Film-Noir"]]


def test_every_route_gives_the_same_rows(tiny: Dataset, tmp_path: Path) -> None:
    official = fetch("ml-100k", archive=pack(tmp_path / "a.zip", OFFICIAL), raw=tmp_path / "raw")
    wheel = fetch("ml-100k", archive=pack(tmp_path / "b.whl", WHEEL, "recbole/ml-100k/"), raw=tmp_path / "raw")
    site = fetch("ml-100k", raw=tmp_path / "raw")
    cache = fetch("ml-100k", raw=tmp_path / "raw")
    for other in (wheel, site, cache):
        same(official, other)
    assert [f.source for f in (official, wheel, site, cache)] == [
        "archive given",
        "archive given",
        "official site",
        "cache",
    ]


@pytest.mark.parametrize("folder", ["", "elsewhere/", "a b/c/", "../up/"])
def test_the_folder_inside_may_have_any_name_and_nothing_is_unpacked(
    tiny: Dataset, tmp_path: Path, folder: str
) -> None:
    inner = tmp_path / "only"
    inner.mkdir()
    archive = pack(inner / "x.zip", OFFICIAL, folder)
    ingest.build(fetch("ml-100k", archive=archive, raw=inner / "raw"))
    assert {p.name for p in inner.rglob("*") if p.is_file()} == {"x.zip", ".ml-100k.lock"}
    assert not (tmp_path / "up").exists()


def test_graph_comes_with_the_wheel_and_can_be_absent(tiny: Dataset, tmp_path: Path) -> None:
    wheel = fetch("ml-100k", archive=pack(tmp_path / "b.whl", WHEEL, "recbole/"), raw=tmp_path / "raw")
    assert ingest.build(wheel).items["directors"].tolist() == [[], ["m.d"], []]
    assert ingest.build(wheel).items["actors"].tolist() == [[], [], []]  # the film is the tail of that fact: an inverse
    bare = fetch("ml-100k", archive=pack(tmp_path / "a.zip", OFFICIAL), raw=tmp_path / "raw")
    assert bare.meta()["graph"] == "absent"
    assert ingest.build(bare).items["directors"].tolist() == [[], [], []]
    assert any("film graph can't be had" in note for note in bare.meta()["notes"])


def test_graph_in_the_cache_serves_an_official_archive(tiny: Dataset, tmp_path: Path) -> None:
    (tmp_path / "raw" / "ml-100k").mkdir(parents=True)
    pack(tmp_path / "raw" / "ml-100k" / MIRROR_NAME, WHEEL, "recbole/")
    got = fetch("ml-100k", archive=pack(tmp_path / "a.zip", OFFICIAL), raw=tmp_path / "raw")
    assert got.archive is not None
    assert got.archive.kind == "official zip"
    assert ingest.build(got).items["directors"].tolist() == [[], ["m.d"], []]
    assert set(got.hashes) == {"u.data", "u.item", "u.genre", "ml-100k.kg", "ml-100k.link"}


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[60] ^= 0xFF
    path.write_bytes(content)


def change_a_rating(path: Path) -> None:
    pack(path, OFFICIAL | {"u.data": OFFICIAL["u.data"].replace(b"\t5\t", b"\t4\t")})


def add_a_rating(path: Path) -> None:
    pack(path, OFFICIAL | {"u.data": OFFICIAL["u.data"] + b"9\t1\t4\t878887117\n"})


def bomb(path: Path) -> None:
    pack(path, OFFICIAL | {"u.data": bytes(20_000_000)})


def leave_one_out(path: Path) -> None:
    pack(path, {n: c for n, c in OFFICIAL.items() if n != "u.item"})


def text(path: Path) -> None:
    path.write_text("<html>not found</html>", encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (cut_in_half, ["md5 expected", "found", "can't be read as a zip"]),
        (flip_a_byte, ["expected", "found"]),
        (change_a_rating, ["u.data", "sha256 expected", "found"]),
        (add_a_rating, ["u.data", "sha256 expected", "found"]),
        (bomb, ["u.data", "20,000,000 bytes"]),
        (leave_one_out, ["not of ml-100k", "u.item"]),
        (text, ["can't be read as a zip"]),
    ],
)
class TestBadFile:
    def test_given_archive_is_refused_and_not_touched(
        self, tiny: Dataset, tmp_path: Path, spoil: Callable[[Path], None], says: list[str]
    ) -> None:
        archive = pack(tmp_path / "mine.zip", OFFICIAL)
        spoil(archive)
        before = archive.read_bytes()
        with pytest.raises(InputError) as error:
            fetch("ml-100k", archive=archive, raw=tmp_path / "raw")
        for part in [str(archive), *says]:
            assert part in str(error.value)
        assert "\n" not in str(error.value)
        assert archive.read_bytes() == before
        assert not (tmp_path / "raw").exists()

    def test_cached_file_is_set_aside_and_fetched_anew(
        self, tiny: Dataset, tmp_path: Path, spoil: Callable[[Path], None], says: list[str]
    ) -> None:
        cache = tmp_path / "raw" / "ml-100k"
        cache.mkdir(parents=True)
        spoil(pack(cache / "ml-100k.zip", OFFICIAL))
        digest = hashlib.sha256((cache / "ml-100k.zip").read_bytes()).hexdigest()[:8]
        got = fetch("ml-100k", raw=tmp_path / "raw")
        assert got.source == "official site"
        assert sorted(p.name for p in cache.iterdir()) == ["ml-100k.zip", f"ml-100k.zip.rejected-{digest}"]
        assert any(f"rejected-{digest}" in note for note in got.notes)


def test_missing_archive_and_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no archive"):
        fetch("ml-100k", archive=tmp_path / "none.zip", raw=tmp_path)
    with pytest.raises(InputError, match="'ml-100'; known are: ml-100k, ml-10m, "):
        fetch("ml-100", raw=tmp_path)
    with pytest.raises(InputError, match="generated"):
        fetch("smoke", archive=tmp_path / "x.zip", raw=tmp_path)


def test_broken_connection_is_resumed(tiny: Dataset, site: Site, tmp_path: Path) -> None:
    site.break_after = 100
    got = fetch("ml-100k", raw=tmp_path / "raw")
    assert got.source == "official site"
    assert site.ranges == [None, "bytes=100-"]
    assert (tmp_path / "raw" / "ml-100k" / "ml-100k.zip").read_bytes() == site.content


def test_leftover_of_another_file_is_fetched_again_from_the_start(tiny: Dataset, site: Site, tmp_path: Path) -> None:
    cache = tmp_path / "raw" / "ml-100k"
    cache.mkdir(parents=True)
    (cache / "ml-100k.zip.part").write_bytes(b"x" * 50)
    got = fetch("ml-100k", raw=tmp_path / "raw")
    assert got.source == "official site"
    assert site.ranges == ["bytes=50-", None]


def test_complete_leftover_needs_no_byte_more(tiny: Dataset, site: Site, tmp_path: Path) -> None:
    cache = tmp_path / "raw" / "ml-100k"
    cache.mkdir(parents=True)
    (cache / "ml-100k.zip.part").write_bytes(site.content)
    assert fetch("ml-100k", raw=tmp_path / "raw").source == "official site"
    assert [p.name for p in cache.iterdir()] == ["ml-100k.zip"]


def test_server_errors_are_retried_client_errors_are_not(site: Site, tmp_path: Path, tiny: Dataset) -> None:
    site.status = 503
    with pytest.raises(httpx.HTTPStatusError):
        datasets.download(site.url, tmp_path / "x.part")
    assert len(site.ranges) == datasets.ATTEMPTS
    site.ranges.clear()
    site.status = 404
    with pytest.raises(InputError, match=r"can't be fetched\. .*404.*--archive FILE\.zip"):
        fetch("ml-100k", raw=tmp_path / "raw")
    assert len(site.ranges) == 1


def test_unreachable_site_leaves_the_word_to_the_mirror_at_once(
    monkeypatch: pytest.MonkeyPatch, tiny: Dataset, tmp_path: Path
) -> None:
    monkeypatch.setitem(datasets.REGISTRY, "ml-100k", replace(tiny, url="http://127.0.0.1:9/ml-100k.zip"))
    wheel = pack(tmp_path / "b.whl", WHEEL, "recbole/")
    monkeypatch.setattr(datasets, "_from_mirror", lambda d, cache, note: datasets.open_archive(wheel, d))
    heard: list[str] = []
    got = fetch("ml-100k", raw=tmp_path / "raw", say=heard.append)
    assert got.source == "mirror"
    assert heard == list(got.notes)
    assert len(heard) == 1
    assert "127.0.0.1" in heard[0]


def test_two_processes_fetch_one_after_the_other(tiny: Dataset, tmp_path: Path) -> None:
    """Another process holds the folder; killed while this one waits, it leaves no lock behind."""
    holds = "import sys, time; from recsys_utils.data import fetch; from pathlib import Path\n"
    holds += "with fetch.alone(Path(sys.argv[1]), print): print('held', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", holds, str(tmp_path / tiny.name)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    heard: list[str] = []

    def say(text: str) -> None:
        heard.append(text)
        if "waiting" in text:
            assert not any((tmp_path / tiny.name).iterdir())
            other.kill()

    assert fetch(tiny.name, raw=tmp_path, say=say).source == "official site"
    assert "waiting" in heard[0]
    other.communicate()


def test_mirror_is_pinned_by_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Dataset) -> None:
    """pip itself, offline, with a wheel of our own: it comes when the hash is right, and only then."""
    monkeypatch.undo()
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    info = {
        "tinyfilms-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tinyfilms\nVersion: 1.0\n",
        "tinyfilms-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tinyfilms-1.0.dist-info/RECORD": b"",
    }
    pack(shelf / MIRROR_NAME, {f"films/{n}": c for n, c in WHEEL.items()} | info, "")
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(shelf), "PIP_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(name, value)
    digest = hashlib.sha256((shelf / MIRROR_NAME).read_bytes()).hexdigest()
    notes: list[str] = []
    good = replace(tiny, mirror=Wheel("tinyfilms==1.0", MIRROR_NAME, digest))
    (tmp_path / "cache").mkdir()
    found = datasets._from_mirror(good, tmp_path / "cache", notes.append)
    assert found is not None
    assert (found.path, notes) == (tmp_path / "cache" / MIRROR_NAME, [])
    bad = replace(tiny, mirror=Wheel("tinyfilms==1.0", MIRROR_NAME, "0" * 64))
    assert datasets._from_mirror(bad, tmp_path, notes.append) is None
    assert "tinyfilms==1.0" in notes[0]
    assert not (tmp_path / MIRROR_NAME).exists()


def test_fetch_command_keeps_a_verified_copy(tiny: Dataset, tmp_path: Path) -> None:
    archive = pack(tmp_path / "mine.zip", OFFICIAL, "other/")
    text = fetch_command("ml-100k", archive, raw=tmp_path / "raw", say=lambda _: None)
    kept = tmp_path / "raw" / "ml-100k" / "ml-100k.zip"
    assert kept.read_bytes() == archive.read_bytes()
    assert str(kept) in text
    assert fetch("ml-100k", raw=tmp_path / "raw").source == "cache"
    assert hashlib.sha256(archive.read_bytes()).hexdigest() in text
    assert "nothing to fetch" in fetch_command("smoke", None, raw=tmp_path)
    latest = pack(tmp_path / "l.zip", LATER, "")
    said = fetch_command("ml-latest", latest, raw=tmp_path / "raw")
    assert hashlib.sha256(latest.read_bytes()).hexdigest() in said
    assert "graph" not in said


def test_registry_states_terms_and_checksums_for_every_set() -> None:
    for entry in datasets.REGISTRY.values():
        assert entry.licence
        assert entry.cite
        assert bool(entry.url) != bool(entry.synthetic)
        for layout in entry.layouts.values():
            assert layout.pinned or entry.md5 or entry.name == "ml-latest", "only that edition moves"
            for pin in (*layout.members.values(), *layout.extras.values()):
                assert (len(pin.digest), pin.size > 0) in {(64, True), (32, True), (0, False)}


MOVIES_CSV = (
    'movieId,title,genres\r\n1,Toy Story (1995),Adventure|Animation\r\n11,"Été, ""L\'"" (1995)",(no genres listed)\r\n'
)
RATINGS_CSV = "userId,movieId,rating,timestamp\r\n7,11,0.5,964982703\r\n10,1,5.0,964982704\r\n"
LATER = {
    "ratings.csv": RATINGS_CSV.encode(),
    "movies.csv": MOVIES_CSV.encode(),
    "links.csv": b"movieId,imdbId,tmdbId\r\n1,0114709,862\r\n11,0112346,\r\n",
    "tags.csv": b'userId,movieId,tag,timestamp\r\n7,1,Pixar,1\r\n8,1,pixar ,2\r\n8,1,"fun, toys",2\r\n',
}
RATINGS_DAT = b"7::11::0.5::964982703\n10::1::5::964982704\n"
TWO_RATINGS = [("ml_7", "11", 0.5, 964982703), ("ml_10", "1", 5.0, 964982704)]


def two_ratings(got: ingest.Tables) -> None:
    assert list(got.ratings.itertuples(index=False, name=None)) == TWO_RATINGS
    assert got.ratings.dtypes.map(str).tolist()[2:] == ["float32", "int64"]
    assert got.items["title"].tolist() == ["Toy Story", 'Été, "L\'"']
    assert got.items["year"].tolist() == [1995, 1995]
    assert got.items["genres"].tolist() == [["Adventure", "Animation"], []]


def test_latest_takes_any_edition_and_records_it(tmp_path: Path) -> None:
    archive = pack(tmp_path / "mine.zip", LATER, "ml-latest/")
    got = fetch("ml-latest", archive=archive, raw=tmp_path / "raw")
    tables = ingest.build(got)
    two_ratings(tables)
    assert tables.items["imdb_id"].tolist() == ["tt0114709", "tt0112346"]
    assert tables.items["tmdb_id"].fillna("-").tolist() == ["862", "-"]
    assert tables.items["keywords"].tolist() == [["fun, toys", "pixar"], []]  # tags in lower case, each once
    assert got.hashes == {"mine.zip": hashlib.sha256(archive.read_bytes()).hexdigest()}
    assert [s.name for s in tables.catalogue.sources] == ["links", "tags"]


def test_genome_tags_come_before_peoples_own(tmp_path: Path) -> None:
    genome = {
        "genome-tags.csv": b"tagId,tag\n1,toys\n2,noir\n",
        "genome-scores.csv": b"movieId,tagId,relevance\n1,1,0.95\n1,2,0.05\n11,2,0.79\n",
    }
    got = ingest.build(fetch("ml-latest", archive=pack(tmp_path / "mine.zip", LATER | genome, ""), raw=tmp_path))
    assert got.items["keywords"].tolist() == [["toys"], []]


@pytest.mark.parametrize(
    ("name", "encoding", "extra"), [("ml-1m", "latin-1", "users.dat"), ("ml-10m", "utf-8", "tags.dat")]
)
def test_colons_separate_the_older_sets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, encoding: str, extra: str
) -> None:
    movies = 'Toy Story (1995)::Adventure|Animation\n11::Été, "L\'" (1995)::(no genres listed)\n'
    files = {"ratings.dat": RATINGS_DAT, "movies.dat": f"1::{movies}".encode(encoding), extra: b"7::1::a::b::3\n"}
    archive = pack(tmp_path / "mine.zip", files, "any/")
    with pytest.raises(InputError, match=f"not the published {name}.zip: md5 expected {datasets.REGISTRY[name].md5}"):
        fetch(name, archive=archive, raw=tmp_path)
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(datasets.REGISTRY, name, replace(datasets.REGISTRY[name], md5=md5))
    got = ingest.build(fetch(name, archive=archive, raw=tmp_path))
    two_ratings(got) if name == "ml-10m" else None
    assert got.items["title"].tolist() == ["Toy Story", 'Été, "L\'"']
    assert got.items["keywords"].tolist()[0] == ([] if name == "ml-1m" else ["a::b"])


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        ({"ratings.csv": b"user,film,stars\n1,2,3\n"}, "begins with 'user,film,stars'"),
        ({"ratings.csv": RATINGS_CSV.replace("5.0", "five").encode()}, "no table of ratings: .*five"),
        ({"ratings.csv": RATINGS_CSV.encode() + b"1,2,3,4,5\r\n"}, "no table of ratings"),
        ({"ratings.csv": b"userId,movieId,rating,timestamp\r\n" + bytes(300_000_000)}, "would unpack to 300,000,0"),
        ({"movies.csv": b"movieId,title\n1,A\n"}, "movies.csv has no column genres"),
        ({"movies.csv": b"\xff\xfe\x00"}, "movies.csv can't be read as CSV"),
        ({"links.csv": b""}, "links.csv can't be read as CSV"),
    ],
)
def test_an_edition_that_is_none_is_refused(tmp_path: Path, spoilt: dict[str, bytes], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ingest.build(fetch("ml-latest", archive=pack(tmp_path / "mine.zip", LATER | spoilt, ""), raw=tmp_path))


def test_latest_small_is_read_as_published(shared_data: Path, tmp_path: Path) -> None:
    got = fetch("ml-latest-small", archive=shared_data / "ml-latest-small.zip", raw=tmp_path)
    tables = ingest.build(got)
    catalogue.check(tables.ratings, tables.items, got.dataset.scale, got.dataset.prefix)
    assert (len(tables.ratings), len(tables.items)) == (100_836, 9_742)  # its README
    assert tables.items["tmdb_id"].isna().sum() == 8
    assert set(got.hashes) == {"ratings.csv", "movies.csv", "links.csv", "tags.csv"}
    assert "pixar" in tables.items["keywords"][0]


def test_real_films_of_1m_and_10m_are_read_whole(shared_data: Path) -> None:
    for name, films in (("1m", 3_883), ("10m", 10_681)):
        layout = datasets.REGISTRY[f"ml-{name}"].layouts["official zip"]
        with zipfile.ZipFile(shared_data / f"ml-{name}-partial.zip") as bundle:
            [inner] = [entry for entry in bundle.namelist() if entry.endswith("movies.dat")]
            table = layout.films({"movies.dat": bundle.read(inner)})
        assert len(table) == films
        assert table["year"].notna().all()
        assert "Misérables, Les" in set(table["title"])


def test_real_files_agree_row_for_row(shared_data: Path, tmp_path: Path) -> None:
    """The official files and the mirror's copy of ML-100K give the same tables, the graph included."""
    cached = ROOT / "data" / "raw"
    wheel = fetch("ml-100k", raw=cached if (cached / "ml-100k").is_dir() else tmp_path)
    if wheel.graph is None:
        pytest.skip("the mirror of ML-100K is neither cached nor reachable")
    raw = wheel.graph.path.parent.parent
    official = fetch("ml-100k", archive=shared_data / "ml-100k.zip", raw=raw)
    mirrored = fetch("ml-100k", archive=wheel.graph.path, raw=raw)
    left, right = ingest.build(official), ingest.build(mirrored)
    pd.testing.assert_frame_equal(left.ratings, right.ratings)
    pd.testing.assert_frame_equal(left.items, right.items)
    assert len(left.ratings) == 100_000
    assert ingest.alike(left.items, np.random.default_rng(0))["p"].max() <= 0.005, "the facts are of the right films"
    assert (left.items["title"] == "unknown").sum() == 1
    assert left.items["year"].isna().sum() == 1


def test_the_film_graph_speaks_of_movie_ids(shared_data: Path, tmp_path: Path) -> None:
    """Films that share a director in the graph share one in truth, if its numbers are read as movieIds only."""
    cached = ROOT / "data" / "raw"
    fetched = fetch("ml-100k", raw=cached if (cached / "ml-100k").is_dir() else tmp_path)
    if fetched.graph is None:
        pytest.skip("the mirror of ML-100K is neither cached nor reachable")
    with gzip.open(shared_data / "ml-100k-imdb-items_info.json.gz") as stream:
        told = {film["movielens_id"]: set((film["directors"] or "").split(", ")) - {""} for film in json.load(stream)}
    right = ingest.build(fetched).items
    graph = fetched.graph.facts("graph").set_index("item_id")["directors"]
    found = {}
    for reading, crews in (("movieId", zip(right["item_id"], right["directors"], strict=True)), ("own", graph.items())):
        films: dict[str, list[str]] = {}
        for film, crew in crews:
            for name in crew if isinstance(crew, list) and told.get(film) else ():
                films.setdefault(name, []).append(film)
        shared = [bool(told[a] & told[b]) for group in films.values() for a, b in combinations(group, 2)]
        found[reading] = np.mean(shared)
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert round(1000 * found["own"]) == 1
    assert "one in a thousand" in readme
    assert round(100 * found["movieId"]) == 99
    assert "99 in a hundred" in readme
    has = right[["directors", "actors", "writers", "keywords"]].map(len).any(axis=1)
    rated = ingest.build(fetched).ratings["item_id"].isin(right["item_id"][has]).mean()
    assert f"{has.sum():,} films ({100 * rated:.0f} % of the ratings)" in readme


def test_readme_lists_the_pinned_checksums() -> None:
    listed = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    for entry in datasets.REGISTRY.values():
        rows = {entry.file: entry.md5} if entry.md5 else {}
        if entry.mirror:
            rows[entry.mirror.file] = entry.mirror.sha256
        for layout in entry.layouts.values():
            rows |= {n: p.digest for n, p in (*layout.members.items(), *layout.extras.items()) if p.digest}
        for name, checksum in rows.items():
            assert any(name in line and checksum in line for line in listed.splitlines()), name


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4), st.floats(0.1, 1))
def test_a_damaged_archive_is_read_or_refused_never_more(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]], keep: float
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged"
    folder.mkdir(exist_ok=True)
    content = bytearray(pack(folder / "whole.zip", LATER, "x/").read_bytes())
    for place, byte in changes:
        content[int(place * (len(content) - 1))] = byte
    archive = folder / "mine.zip"
    archive.write_bytes(content[: int(len(content) * (1 if keep > 0.5 else keep))])
    try:
        got = ingest.build(fetch("ml-latest", archive=archive, raw=folder))
    except InputError:
        return
    assert got.ratings["timestamp"].tolist() == [964982703, 964982704]
