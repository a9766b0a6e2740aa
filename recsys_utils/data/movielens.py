"""The forms in which MovieLens is published, read into the study's columns.

100K: tab and pipe, Latin-1. 1M and 10M: ``::``, Latin-1 and UTF-8. Later editions: CSV, quoted where needed. Ratings
are streamed from text to parquet, so 32 million of them need little memory; the other files are small.
"""

from __future__ import annotations

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


ML_100K = Layout(
    members={
        "u.data": Member("06416e597f82b7342361e41163890c81036900f418ad91315590814211dca490", 1_979_173),
        "u.item": Member("553841ebc7de3a0fd0d6b62a204ea30c1e651aacfb2814c7a6584ac52f2c5701", 236_344),
        "u.genre": Member("9757e0d3e6b298159a80dd48eaf938114690e911e39af97a76949ef1663610bb", 202),
    },
    ratings=TAB,
    films=films_100k,
    extras={"u1.test": Member("18c6014a4b2c7324f250a63f8904a7b16b2b19f911129e346141507b0cbac950", 392_629)},
)
ML_100K_WHEEL = Layout(
    members={
        "ml-100k.inter": Member("4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff", 1_979_230),
        "ml-100k.item": Member("51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532", 66_632),
    },
    ratings=TAB_HEADED,
    films=films_wheel,
    extras={
        "ml-100k.kg": Member("200a0636fa07c218119a42e5bac7aa3e26e3665a6f919c1b22909bd412b14779", 3_515_608),
        "ml-100k.link": Member("524dca2c3d62619688ab99b3ec53ea2acb9b64d38eafec3e02bdd0dc6bb7d948", 21_507),
    },
    facts={"graph": (graph, ("ml-100k.kg", "ml-100k.link"))},
)
ML_1M = Layout(
    members={"ratings.dat": Member(), "movies.dat": Member(), "users.dat": Member()},
    ratings=COLONS,
    films=films_dat,
)
ML_10M = Layout(
    members={"ratings.dat": Member(), "movies.dat": Member(), "tags.dat": Member()},
    ratings=COLONS,
    films=films_dat,
    facts={"tags": (tags, ("tags.dat",))},
)
ML_CSV = Layout(
    members={"ratings.csv": Member(), "movies.csv": Member()},
    ratings=CSV,
    films=films_csv,
    extras=dict.fromkeys(("links.csv", "tags.csv", "genome-scores.csv", "genome-tags.csv"), Member()),
    facts={
        "links": (links, ("links.csv",)),
        "tags": (tags, ("tags.csv",)),
        "genome": (genome, ("genome-scores.csv", "genome-tags.csv")),
    },
)
ML_LATEST_SMALL = replace(
    ML_CSV,
    members={
        "ratings.csv": Member("aa289ca83157595d0df6aea1be6a4ded676ddc4385472e8313a8ed9805352646", 2_483_723),
        "movies.csv": Member("5a5f32dd9bb3797b8e728a1b98958789d2b13f294a69fdfbc5727f8a9611aa07", 494_431),
        "links.csv": Member("97ad18e4e56a09363c65676b6cb3482ce3e2cea2372a24620c1599c843325f31", 197_979),
        "tags.csv": Member("92a9f8bb7916dceef6151209845788c3643f794dfa79d1feaec7121b5960399d", 118_660),
    },
    extras={},
)
ML_32M = replace(
    ML_CSV,
    members={  # checksums.txt of the archive
        "ratings.csv": Member("cf12b74f9ad4b94a011f079e26d4270a", 877_076_222),
        "movies.csv": Member("0df90835c19151f9d819d0822e190797", 4_242_926),
        "links.csv": Member("8f033867bcb4e6be8792b21468b4fa6e", 1_950_748),
        "tags.csv": Member("963bf4fa4de6b8901868fddd3eb54567", 72_353_890),
    },
    extras={},
)
ML_LINKS = replace(ML_CSV, members={"links.csv": Member(), "movies.csv": Member()})
"""A later edition as a source of ids: its ratings may be missing."""
