"""The forms in which MovieLens is published, read into the study's columns.

100K: tab and pipe, Latin-1. 1M and 10M: ``::``, Latin-1 and UTF-8. Later editions: CSV, quoted where needed. Ratings
are streamed from text to parquet, so 32 million of them need little memory; the other files are small.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import polars as pl

from recsys_utils.base import ITEM, RATING, TIMESTAMP, USER, InputError
from recsys_utils.data.catalogue import Source
from recsys_utils.data.titles import imdb_id, read_csv, split_year

Files = Mapping[str, bytes]

NO_GENRES = "(no genres listed)"
GENOME_RELEVANCE = 0.8
"""From this relevance (0-1) on, a tag of the genome counts as a keyword of a film."""


# ---- ratings


@dataclass(frozen=True)
class RatingsFormat:
    """How a table of ratings is written: one separator (``::`` leaves empty columns between), a header line or none."""

    separator: str
    header: str = ""

    def to_parquet(self, source: Path, target: Path, prefix: str) -> None:
        """Stream a text file of ratings to parquet (zstd): user_id (with prefix), item_id, rating, timestamp.

        Rows keep their order; no more than a few blocks of them are in memory at a time.

        Raises
        ------
        InputError : a line that is no rating; names the file and what was seen.
        """
        columns = {USER: pl.String, ITEM: pl.String, RATING: pl.Float32, TIMESTAMP: pl.Int64}
        gaps: dict[str, type[pl.DataType]] = {}
        for name, kind in columns.items():  # "::" is two separators around a column that is always empty
            gaps |= {name: kind, f"gap_{name}": pl.String} if len(self.separator) == 2 else {name: kind}
        gaps.pop(f"gap_{TIMESTAMP}", None)
        table = pl.scan_csv(
            source, separator=self.separator[0], has_header=False, skip_rows=1 if self.header else 0, schema=gaps,
        ).select(pl.concat_str(pl.lit(prefix), USER).alias(USER), ITEM, RATING, TIMESTAMP)  # fmt: skip
        try:
            table.sink_parquet(target, compression="zstd", maintain_order=True)
        except (pl.exceptions.PolarsError, UnicodeError) as error:
            why = " ".join(str(error).split("\n\n")[0].split())
            raise InputError(f"{source.name} is no table of ratings: {why}") from None


TAB = RatingsFormat("\t")
TAB_HEADED = RatingsFormat("\t", "user_id:token\titem_id:token\trating:float\ttimestamp:float")
COLONS = RatingsFormat("::")
CSV = RatingsFormat(",", "userId,movieId,rating,timestamp")


# ---- films


def _table(text: bytes, separator: str, columns: list[str], *, header: bool, encoding: str = "utf-8") -> pd.DataFrame:
    """A plain separated table, every field a string, nothing quoted and nothing taken for missing."""
    return pd.read_csv(
        io.BytesIO(text), sep=separator, names=columns, header=0 if header else None, dtype=str, quoting=3,
        keep_default_na=False, encoding=encoding,
    )  # fmt: skip


def _films(ids: pd.Series, titles: pd.Series, genres: list[list[str]]) -> pd.DataFrame:
    """Films from titles that end in their year, as MovieLens writes them."""
    parts = [split_year(t) for t in titles]
    years = pd.array([y for _, y in parts], dtype="Int64")
    return pd.DataFrame({ITEM: ids.to_numpy(), "title": [t for t, _ in parts], "year": years, "genres": genres})


def films_100k(files: Files) -> pd.DataFrame:
    genres = [line.split("|")[0] for line in files["u.genre"].decode("latin-1").split()]
    columns = [ITEM, "title", "release", "video", "imdb", *genres]
    table = _table(files["u.item"], "|", columns, header=False, encoding="latin-1")
    flags = table[genres].to_numpy() == "1"
    return _films(table[ITEM], table["title"], [[g for g, on in zip(genres, row, strict=True) if on] for row in flags])


def films_wheel(files: Files) -> pd.DataFrame:
    table = _table(files["ml-100k.item"], "\t", [ITEM, "title", "year", "genres"], header=True)
    # the packagers cut the last bracket off the title and called it the year: join what they cut, mend their one typo
    titles = (table["title"] + " (" + table["year"] + ")").replace("unkonwn (unkonwn)", "unknown")
    return _films(table[ITEM], titles, [g.split() for g in table["genres"]])


def _split_genres(genres: pd.Series) -> list[list[str]]:
    return [[] if g in ("", NO_GENRES) else g.split("|") for g in genres]


def films_dat(files: Files) -> pd.DataFrame:
    rows = [line.split("::") for line in _decode(files["movies.dat"]).splitlines() if line]
    bad = next((i for i, row in enumerate(rows) if len(row) != 3), None)
    if bad is not None:
        raise InputError(f"movies.dat: row {bad + 1} has {len(rows[bad])} columns, not id::title::genres.")
    table = pd.DataFrame(rows, columns=[ITEM, "title", "genres"])
    return _films(table[ITEM], table["title"], _split_genres(table["genres"]))


def _decode(text: bytes) -> str:
    """10M is UTF-8, 1M is Latin-1; no Latin-1 title of 1M happens to be valid UTF-8."""
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def _csv(files: Files, name: str, columns: list[str]) -> pd.DataFrame:
    return read_csv(io.BytesIO(files[name]), name, columns)


def films_csv(files: Files) -> pd.DataFrame:
    table = _csv(files, "movies.csv", ["movieId", "title", "genres"])
    return _films(table["movieId"], table["title"], _split_genres(table["genres"]))


# ---- what else an archive knows about films


def links(files: Files) -> pd.DataFrame:
    """item_id, imdb_id (tt0114709), tmdb_id from links.csv; empty where MovieLens has none."""
    table = _csv(files, "links.csv", ["movieId", "imdbId", "tmdbId"])
    return pd.DataFrame(
        {
            ITEM: table["movieId"],
            "imdb_id": table["imdbId"].map(imdb_id).astype("string"),
            "tmdb_id": table["tmdbId"].str.removesuffix(".0").replace("", None).astype("string"),
        }
    )


def tags(files: Files) -> pd.DataFrame:
    """item_id, keywords: what people tagged a film with, in lower case, each tag once, sorted."""
    if "tags.csv" in files:
        table = _csv(files, "tags.csv", ["movieId", "tag"])
    else:
        rows = [line.split("::", 2)[1:] for line in _decode(files["tags.dat"]).splitlines() if line]
        table = pd.DataFrame([(film, rest.rsplit("::", 1)[0]) for film, rest in rows], columns=["movieId", "tag"])
    table = table.assign(tag=table["tag"].str.strip().str.casefold()).query("tag != ''").drop_duplicates()
    return _grouped(table["movieId"], table["tag"])


def genome(files: Files) -> pd.DataFrame:
    """item_id, keywords: the tags of the genome whose relevance is at least ``GENOME_RELEVANCE``."""
    scores = pl.scan_csv(
        files["genome-scores.csv"], schema={"movieId": pl.String, "tagId": pl.String, "relevance": pl.Float32}
    )
    strong = scores.filter(pl.col("relevance") >= GENOME_RELEVANCE).collect(engine="streaming")
    names = _csv(files, "genome-tags.csv", ["tagId", "tag"]).set_index("tagId")["tag"]
    return _grouped(pd.Series(strong["movieId"].to_list()), pd.Series(strong["tagId"].to_list()).map(names))


def graph(files: Files) -> pd.DataFrame:
    """item_id, keywords, directors, actors, writers from the film graph of the mirror (ids, no names, no order).

    The graph is next to ML-100K, and its films are numbered up to 1,682 like ML-100K's, but by the movieIds of the
    later editions: taken for ML-100K's own ids, one pair in a thousand that shares a director there does so in truth,
    taken for movieIds 99 % (``recsys_study.ingest.alike`` sees it from the genres).
    """
    link = _table(files["ml-100k.link"], "\t", [ITEM, "film"], header=True)
    facts = _table(files["ml-100k.kg"], "\t", ["film", "relation", "entity"], header=True)
    facts = facts.merge(link, on="film")[[ITEM, "relation", "entity"]].drop_duplicates()
    lists = {
        column: facts[facts["relation"] == relation].groupby(ITEM)["entity"].agg(sorted)
        for relation, column in GRAPH_COLUMNS.items()
    }
    return pd.DataFrame(lists).rename_axis(ITEM).reset_index()


GRAPH = Source(
    name="graph",
    licence="RecBole (MIT); facts from Freebase (CC BY 2.5), linked by KB4Rec; links as the MovieLens data",
    attribution="Film graph: Freebase (CC BY 2.5) through KB4Rec (W. X. Zhao et al. 2019) and RecBole 1.2.1.",
)
# Relations of the film graph that describe a film. Their inverses say the same again and are left out, so a fact gives
# one token.
GRAPH_COLUMNS: Mapping[str, str] = {
    "film.film.subjects": "keywords",
    "film.film.directed_by": "directors",
    "film.film.actor": "actors",
    "film.film.written_by": "writers",
}


def _grouped(films: pd.Series, words: pd.Series) -> pd.DataFrame:
    return words.groupby(films.to_numpy()).agg(sorted).rename_axis(ITEM).rename("keywords").reset_index()


# ---- layouts


@dataclass(frozen=True)
class Member:
    """A file inside an archive as published: hex digest (64 digits: SHA-256, 32: MD5) and size in bytes.

    ``Member()`` is a file that is not pinned, because its edition changes or only the whole archive has a checksum.
    """

    digest: str = ""
    size: int = 0

    @property
    def algorithm(self) -> str:
        return "md5" if len(self.digest) == 32 else "sha256"


@dataclass(frozen=True)
class Layout:
    """One form in which a data set is published; members by file name, in whatever folder they lie.

    Attributes
    ----------
    members : the files every archive of this layout holds, that of the ratings first
    extras : files that are read where they are there
    ratings : how the ratings are written
    films : item_id, title, year, genres from ``members``
    facts : what else the archive knows about films, by the source's name: a reader and the files it needs
    """

    members: Mapping[str, Member]
    ratings: RatingsFormat
    films: Callable[[Files], pd.DataFrame]
    extras: Mapping[str, Member] = field(default_factory=dict)
    facts: Mapping[str, tuple[Callable[[Files], pd.DataFrame], tuple[str, ...]]] = field(default_factory=dict)

    @property
    def ratings_file(self) -> str:
        return next(iter(self.members))

    @property
    def pinned(self) -> bool:
        return all(pin.digest for pin in self.members.values())

    def pin(self, name: str) -> Member:
        return self.members.get(name) or self.extras[name]


def _pinned(dataset: str, *files: str) -> dict[str, Member]:
    with Path(__file__).with_name("checksums.csv").open(encoding="utf-8", newline="") as stream:
        known = {row["file"]: row for row in csv.DictReader(stream) if row["dataset"] == dataset}
    return {name: Member(known[name]["digest"], int(known[name]["bytes"])) for name in files}


def _unpinned(*files: str) -> dict[str, Member]:
    return dict.fromkeys(files, Member())


_GRAPH_FILES = ("ml-100k.kg", "ml-100k.link")
ML_100K = Layout(
    _pinned("ml-100k", "u.data", "u.item", "u.genre"), TAB, films_100k, extras=_pinned("ml-100k", "u1.test")
)
ML_100K_WHEEL = Layout(
    _pinned("ml-100k", "ml-100k.inter", "ml-100k.item"), TAB_HEADED, films_wheel,
    extras=_pinned("ml-100k", *_GRAPH_FILES), facts={"graph": (graph, _GRAPH_FILES)},
)  # fmt: skip
ML_1M = Layout(_unpinned("ratings.dat", "movies.dat", "users.dat"), COLONS, films_dat)
ML_10M = Layout(
    _unpinned("ratings.dat", "movies.dat", "tags.dat"), COLONS, films_dat, facts={"tags": (tags, ("tags.dat",))}
)
ML_CSV = Layout(
    _unpinned("ratings.csv", "movies.csv"), CSV, films_csv,
    extras=_unpinned("links.csv", "tags.csv", "genome-scores.csv", "genome-tags.csv"),
    facts={
        "links": (links, ("links.csv",)), "tags": (tags, ("tags.csv",)),
        "genome": (genome, ("genome-scores.csv", "genome-tags.csv")),
    },
)  # fmt: skip
_CSV_FILES = ("ratings.csv", "movies.csv", "links.csv", "tags.csv")
ML_LATEST_SMALL = replace(ML_CSV, members=_pinned("ml-latest-small", *_CSV_FILES), extras={})
ML_32M = replace(ML_CSV, members=_pinned("ml-32m", *_CSV_FILES), extras={})  # MD5, from checksums.txt of the archive
ML_LINKS = replace(ML_CSV, members=_unpinned("links.csv", "movies.csv"))
"""A later edition as a source of ids: its ratings may be missing."""
