"""The catalogue: one row a film, whatever the sources know about it."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from recsys_utils.interactions import natural_order
from recsys_utils.interfaces import ITEM, RATING, TIMESTAMP, USER, InputError, Scale

LISTS = ["genres", "keywords", "directors", "actors", "writers"]
COLUMNS = [ITEM, "title", "year", *LISTS, "overview", "imdb_id", "tmdb_id"]

# Relations of the film graph that describe a film. Their inverses say the same again and are left out, so a fact gives
# one token; awards, languages, countries and ratings made a worse soup than none of them.
GRAPH_COLUMNS: Mapping[str, str] = {
    "film.film.subjects": "keywords",
    "film.film.directed_by": "directors",
    "film.film.actor": "actors",
    "film.film.written_by": "writers",
}


def build(films: pd.DataFrame, graph: pd.DataFrame | None) -> pd.DataFrame:
    """Join films and graph into the columns of items.parquet (``COLUMNS``), rows in natural order of item_id.

    Parameters
    ----------
    films : item_id, title, year (Int64), genres (list of str), and any other column of the catalogue
    graph : item_id, relation, entity - facts about films, or None when the source can't be had;
        lists then stay empty. The graph states no order, so its lists are sorted.

    Raises
    ------
    InputError : two films share an id.

    >>> films = pd.DataFrame({"item_id": ["10", "9"], "title": ["B", "A"], "year": [1990, 1991]})
    >>> films["genres"] = [["War"], []]
    >>> facts = pd.DataFrame({"item_id": ["9"], "relation": ["film.film.directed_by"], "entity": ["m.01"]})
    >>> build(films, facts)[["item_id", "genres", "directors"]].to_numpy().tolist()
    [['9', [], ['m.01']], ['10', ['War'], []]]
    """
    twice = films[ITEM][films[ITEM].duplicated()]
    if len(twice):
        raise InputError(f"Film id {twice.iloc[0]!r} stands for two films in the catalogue; ids must be distinct.")
    items = films.set_index(ITEM).loc[natural_order(films[ITEM])].reset_index()
    items["year"] = items["year"].astype("Int64")
    if graph is not None:
        facts = graph[graph[ITEM].isin(items[ITEM])].drop_duplicates()
        for relation, column in GRAPH_COLUMNS.items():
            grouped = facts[facts["relation"] == relation].groupby(ITEM)["entity"].agg(sorted)
            items[column] = items[ITEM].map(grouped)
    for column in LISTS:
        if column not in items:
            items[column] = None
        items[column] = [list(v) if isinstance(v, (list, tuple)) else [] for v in items[column]]
    if "overview" not in items:
        items["overview"] = ""
    for column in ("imdb_id", "tmdb_id"):
        items[column] = (items[column] if column in items else pd.Series(None, index=items.index)).astype("string")
    return items[COLUMNS]


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
                "imdb_id": pa.Column("string", nullable=True),
                "tmdb_id": pa.Column("string", nullable=True),
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
                problems.append(f"{name}.{column}: {rule} fails {len(cases)} time(s), e.g. {example!r}")
    if items[ITEM].tolist() != natural_order(items[ITEM]):
        problems.append("items: rows are not in natural order of item_id")
    if problems:
        raise InputError(f"The data fail their quality checks: {'; '.join(problems)}.")
