"""The catalogue: one row per film, with what the sources know about it and which source it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from recsys_utils.base import ITEM, RATING, TIMESTAMP, USER, InputError, Scale, counted
from recsys_utils.data.interactions import natural_order

BUILT_IN = ("genome", "tags", "graph", "tmdb")
"""Sources of film facts that go by name, besides files; tmdb is its API, called only where it is named."""
LISTS = ["genres", "keywords", "directors", "actors", "writers"]
IDS = ["movie_id", "imdb_id", "tmdb_id"]  # movie_id: the movieId of MovieLens' later editions
NUMBERS = {"imdb_rating": "Float64", "imdb_votes": "Int64"}  # of today, so no feature of a model: they know the future
COLUMNS = [ITEM, "title", "year", *LISTS, "overview", *IDS, *NUMBERS]


@dataclass(frozen=True)
class Source:
    """Where facts about films come from, and on which terms; ``snapshot`` is the date of the copy, "" if unknown."""

    name: str
    licence: str
    attribution: str
    may_redistribute: bool = False
    snapshot: str = ""


@dataclass(frozen=True)
class Facts:
    """What a source knows about films: a key (item_id, movie_id, imdb_id or tmdb_id) and columns of the catalogue.

    ``ordered``: ``actors`` are in billing order.
    """

    source: Source
    table: pd.DataFrame
    key: str = ITEM
    ordered: bool = False


@dataclass(frozen=True)
class Catalogue:
    """The merged films, and what contributed: ``origin`` has source, field, films."""

    items: pd.DataFrame
    origin: pd.DataFrame
    sources: tuple[Source, ...]
    has_billing_order: bool

    def meta(self) -> dict[str, Any]:
        """The part of meta.json that describes the sources; only those that contributed."""
        return {"sources": [asdict(s) for s in self.sources], "attribution": [s.attribution for s in self.sources]}


def merge(films: pd.DataFrame, facts: Sequence[Facts] = ()) -> Catalogue:
    """Merge films with facts into the columns of items.parquet (``COLUMNS``), rows in natural order of item_id.

    A field of a film comes from the first source that has it: the films' own table, then ``facts`` in order. Lists are
    taken whole and never mixed, so that one film's keywords are one source's vocabulary.

    Parameters
    ----------
    films : item_id, title, year (Int64), genres (list of str), and any other column of the catalogue

    Raises
    ------
    InputError : two films share an id.

    >>> films = pd.DataFrame({"item_id": ["10", "9"], "title": ["B", "A"], "year": [1990, 1991]})
    >>> films["genres"] = [["War"], []]
    >>> crew = pd.DataFrame({"item_id": ["9", "10"], "genres": [["Drama"], ["Drama"]], "directors": [["m.01"], []]})
    >>> merged = merge(films, [Facts(Source("crew", "", ""), crew)]).items
    >>> merged[["item_id", "genres", "directors"]].to_numpy().tolist()
    [['9', ['Drama'], ['m.01']], ['10', ['War'], []]]
    """
    twice = films[ITEM][films[ITEM].duplicated()]
    if len(twice):
        raise InputError(f"Film id {twice.iloc[0]!r} occurs twice in the catalogue; ids must be distinct.")
    items = films.set_index(ITEM).loc[natural_order(films[ITEM])].reset_index()
    items["year"] = items["year"].astype("Int64")
    for column in LISTS:
        values = items[column] if column in items else [None] * len(items)
        items[column] = pd.Series([list(v) if isinstance(v, (list, tuple)) else [] for v in values], dtype=object)
    items["overview"] = items["overview"].fillna("") if "overview" in items else ""
    scalars = dict.fromkeys(IDS, "string") | NUMBERS
    items = items.assign(**{column: None for column in scalars if column not in items}).astype(scalars)
    origin: list[tuple[Facts, str, int]] = []
    for one in facts:
        table = one.table[one.table[one.key].notna()].drop_duplicates(one.key).set_index(one.key)
        for column in [c for c in (*LISTS, "overview", *scalars) if c in table]:
            new = [table[column].get(key) for key in items[one.key]]
            fill = [_empty(old) and not _empty(value) for old, value in zip(items[column], new, strict=True)]
            if any(fill):
                values = [b if take else a for a, b, take in zip(items[column], new, fill, strict=True)]
                items[column] = pd.Series(values, dtype=items[column].dtype)
                origin.append((one, column, sum(fill)))
    rows = [(one.source.name, column, films) for one, column, films in origin]
    casts = [one.ordered for one, column, _ in origin if column == "actors"]
    sources = tuple(dict.fromkeys(one.source for one, *_ in origin))
    table = pd.DataFrame(rows, columns=["source", "field", "films"])
    return Catalogue(items[COLUMNS], table, sources, bool(casts) and all(casts))


def _empty(value: Any) -> bool:
    return len(value) == 0 if isinstance(value, (list, str)) else bool(pd.isna(value))


def coverage(items: pd.DataFrame, ratings: pd.DataFrame) -> pd.DataFrame:
    """What share of films, and of ratings, has each kind of content: field, films, share_of_films, share_of_ratings."""
    weight = items[ITEM].map(ratings[ITEM].value_counts()).fillna(0)
    rows = []
    for field in ["year", *LISTS, "overview"]:
        column = items[field]
        has = column.notna() if field == "year" else column.map(len) > 0
        rows.append((field, int(has.sum()), has.mean(), weight[has].sum() / max(weight.sum(), 1)))
    return pd.DataFrame(rows, columns=["field", "films", "share_of_films", "share_of_ratings"])


def check(ratings: pd.DataFrame, items: pd.DataFrame, scale: Scale, prefix: str) -> None:
    """Check the tables a run starts from: columns, types, ranges, ids, order.

    Raises
    ------
    InputError : lists every rule that was broken, with an example.
    """
    import pandera.pandas as pa  # slow to import, and only ingest needs it

    def lists(column: pd.Series) -> pd.Series:
        return column.map(lambda v: isinstance(v, list) and all(isinstance(t, str) and t for t in v)).astype(bool)

    rules = {
        "ratings": pa.DataFrameSchema(
            {
                USER: pa.Column(str, pa.Check.str_startswith(prefix)),
                ITEM: pa.Column(str, pa.Check.isin(set(items[ITEM]))),
                RATING: pa.Column("float32", pa.Check.in_range(scale.lo, scale.hi)),
                TIMESTAMP: pa.Column("int64", pa.Check.ge(0)),
            },
            unique=[USER, ITEM],
            strict=True,
        ),
        "items": pa.DataFrameSchema(
            {
                ITEM: pa.Column(str, unique=True),
                "title": pa.Column(str, pa.Check.str_length(min_value=1)),
                "year": pa.Column("Int64", pa.Check.in_range(1870, 2100), nullable=True),
                **{name: pa.Column(object, pa.Check(lists, error="a list of words")) for name in LISTS},
                "overview": pa.Column(str),
                **{name: pa.Column("string", nullable=True) for name in IDS},
                "imdb_rating": pa.Column("Float64", pa.Check.in_range(1, 10), nullable=True),
                "imdb_votes": pa.Column("Int64", pa.Check.ge(0), nullable=True),
            },
            strict=True,
            ordered=True,
        ),
    }
    problems = []
    for name, table in (("ratings", ratings), ("items", items)):
        try:
            rules[name].validate(table, lazy=True)
        except pa.errors.SchemaErrors as error:
            for (column, rule), cases in error.failure_cases.groupby(["column", "check"], dropna=False, sort=False):
                example = cases["failure_case"].iloc[0]
                problems.append(f"{name}.{column}: {rule} fails in {counted(len(cases), 'row')}, e.g. {example!r}")
    if items[ITEM].tolist() != natural_order(items[ITEM]):
        problems.append("items: rows are not in natural order of item_id")
    if problems:
        raise InputError(f"The data fail their quality checks: {'; '.join(problems)}.")
