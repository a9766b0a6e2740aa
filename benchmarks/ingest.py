"""From a zip in MovieLens' layout to ratings.parquet, beside pandas.read_csv on the same generated zip."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.generated import ML_25M, generate
from benchmarks.measure import Contender, Row, compare
from recsys_utils.data.fetch import fetch


def write(archive: Path, ratings: int) -> None:
    """A zip of ratings.csv and movies.csv; users grow as the ratings, films as their root, up to MovieLens 25M."""
    share = ratings / ML_25M[2]
    users, items = max(10, round(ML_25M[0] * share)), round(ML_25M[1] * share**0.5)
    user, item, rating = generate(users, items, ratings)
    stamps = 10**9 + np.arange(len(user)) * 7919 % 10**8
    table = pd.DataFrame({"userId": user + 1, "movieId": item + 1, "rating": rating, "timestamp": stamps})
    text = archive.with_suffix(".csv")
    table.to_csv(text, index=False, lineterminator="\n")
    films = "".join(f'{n},"Film {n} (2000)",Drama\n' for n in range(1, items + 1))
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target:
        target.write(text, "ml-generated/ratings.csv")
        target.writestr("ml-generated/movies.csv", "movieId,title,genres\n" + films)
    text.unlink()


def by_ingest(archive: Path) -> Generator[None, None, str]:
    fetched = fetch("ml-latest", archive=archive, raw=archive.parent)
    target = archive.with_name("ours.parquet")
    yield
    fetched.ratings_to(target)
    return str(target)


def by_pandas(archive: Path) -> Generator[None, None, str]:
    target = archive.with_name("theirs.parquet")
    yield
    kinds = {"userId": str, "movieId": str, "rating": np.float32, "timestamp": np.int64}
    with zipfile.ZipFile(archive) as source, source.open("ml-generated/ratings.csv") as text:
        table = pd.read_csv(text, dtype=kinds)
    table.columns = ["user_id", "item_id", "rating", "timestamp"]
    table["user_id"] = "ml_" + table["user_id"]
    table.to_parquet(target, index=False, compression="zstd")
    return str(target)


def identical(ours: str, theirs: str) -> tuple[bool, str]:
    """Column by column, so that large tables fit twice."""
    columns = ("user_id", "item_id", "rating", "timestamp")
    same = [
        name
        for name in columns
        if pd.read_parquet(ours, columns=[name]).equals(pd.read_parquet(theirs, columns=[name]))
    ]
    return len(same) == len(columns), f"identical columns: {', '.join(same) or 'none'} (of {len(columns)})"


def run(*, full: bool = False, ratings: Sequence[int] | None = None) -> list[Row]:
    """Rows from 100,000 to 1.6 million ratings, with ``full`` from 1/16 of MovieLens 25M to the whole."""
    if ratings is None:
        largest = ML_25M[2] if full else 1_600_000
        ratings = [largest // 2**step for step in range(4, -1, -1)]
    rows = []
    for size in ratings:
        folder = Path(tempfile.mkdtemp())
        try:
            write(folder / "ml-generated.zip", size)
            where = (folder / "ml-generated.zip",)
            rows += compare(
                {"benchmark": "ingest", "task": "zip to parquet", "size": size, "unit": "ratings"},
                [
                    Contender("Fetched.ratings_to (polars, streamed)", by_ingest, where),
                    Contender("pandas.read_csv, to_parquet", by_pandas, where, check=identical),
                ],
            )
        finally:
            shutil.rmtree(folder)
    return rows
