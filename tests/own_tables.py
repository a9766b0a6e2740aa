"""Tables such as people have: made of the synthetic data, in another guise each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from recsys_utils.base import child_rng
from recsys_utils.data.synthetic import Size, Synthetic, generate

SMALL = Size(users=90, items=110, ratings=3_000)


def scaled(data: Synthetic, lo: float, hi: float, step: float) -> np.ndarray:
    """The generated ratings before rounding, spread over a scale and rounded to its steps."""
    user = pd.factorize(data.ratings["user_id"], sort=False)
    row = pd.Index([f"smoke_{n + 1}" for n in range(data.size.users)]).get_indexer(user[1])[user[0]]
    item = pd.Index(data.items["item_id"]).get_indexer(data.ratings["item_id"])
    noise = child_rng(data.size.seed, "own tables").normal(0, data.size.noise, len(row))
    place = np.clip((data.expected_at(row, item) + noise - 1) / 4, 0, 1)
    return lo + np.round(place * (hi - lo) / step) * step


def half_stars(folder: Path, size: Size = SMALL) -> dict[str, str]:
    """Scale .5-4; ids with commas, accents and leading zeros; neither titles nor times; a tab-separated file."""
    data = generate(size)
    items = "00" + data.ratings["item_id"] + ", né"
    table = pd.DataFrame(
        {"User": "ü " + data.ratings["user_id"], "productId": items, "stars": scaled(data, 0.5, 4, 0.5)}
    )
    table.to_csv(folder / "half_stars.tsv", sep="\t", index=False)
    return {"ratings": str(folder / "half_stars.tsv")}


def points(folder: Path, size: Size = SMALL) -> dict[str, str]:
    """Scale 0-10 with real zeros, titles, years and genres; parquet and a semicolon CSV in Latin-1."""
    data = generate(size)
    names = {"user_id": "member", "item_id": "movieId", "timestamp": "rated_at"}
    table = data.ratings.assign(score=scaled(data, 0, 10, 1)).drop(columns="rating").rename(columns=names)
    table["rated_at"] = pd.to_datetime(table["rated_at"], unit="s")
    table.to_parquet(folder / "points.parquet")
    films = pd.DataFrame(
        {"movieId": data.items["item_id"], "Title": data.items["title"] + " é", "Year": data.items["year"]}
    )
    films["Genres"] = data.items["genres"].map("|".join)
    films.iloc[:-3].to_csv(folder / "films.csv", sep=";", index=False, encoding="latin-1")
    return {"ratings": str(folder / "points.parquet"), "items": str(folder / "films.csv")}


def few(folder: Path) -> dict[str, str]:
    """8,000 ratings and nothing else: no header, colons between; many users with a handful of ratings."""
    data = generate(Size(users=300, items=400, ratings=16_000))
    ratings = data.ratings.groupby("user_id").head(60)
    some = child_rng(0, "few").permutation(ratings["user_id"].unique())[:120]
    short = ratings["user_id"].isin(some)
    ratings = pd.concat([ratings[~short], ratings[short].groupby("user_id").head(4)]).head(8_000)
    lines = ratings["user_id"].str.removeprefix("smoke_") + "::" + ratings["item_id"] + "::"
    text = "\n".join(lines + ratings["rating"].astype(int).astype(str))
    (folder / "few.dat").write_text(text + "\n", encoding="utf-8")
    return {"ratings": str(folder / "few.dat")}


def tracks(folder: Path, size: Size = SMALL) -> dict[str, str]:
    """Music: ratings of 1-100, artists and genres instead of films, times in milliseconds; gzipped."""
    data = generate(size)
    table = pd.DataFrame(
        {"listener": data.ratings["user_id"], "track_id": "t" + data.ratings["item_id"],
         "rating": scaled(data, 1, 100, 1), "ts": data.ratings["timestamp"] * 1000}
    )  # fmt: skip
    table.to_csv(folder / "plays.csv.gz", index=False)
    songs = pd.DataFrame({"track_id": "t" + data.items["item_id"], "track_name": data.items["title"]})
    songs["genre"] = data.items["genres"].map(", ".join)
    songs["tags"] = data.items["keywords"].map(", ".join)
    songs.to_csv(folder / "tracks.csv", index=False)
    return {"ratings": str(folder / "plays.csv.gz"), "items": str(folder / "tracks.csv")}
