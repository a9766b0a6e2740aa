"""Do item ids mean the same elsewhere? What a join by id does where two data sets number their films differently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from numpy.typing import NDArray

from recsys_utils.base import ITEM
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation.metrics import genre_matrix
from recsys_utils.evaluation.protocols import align, cold_item_case, rank_and_measure
from recsys_utils.models.content import ContentModel

NDCG = "ndcg@10"
MATCHED, JOINED = "matched", "joined-by-id"


def join_by_id(crosswalk: pd.DataFrame, later: pd.DataFrame, ratings: pd.Series) -> pd.DataFrame:
    """What joining item_id to movieId, as if they were one id space, does: join, items, ratings, share_of_ratings.

    Parameters
    ----------
    crosswalk : item_id, movieId; an item without a counterpart that meets some film is on another film
    later : item_id of the later edition's films
    ratings : item_id of each rating
    """
    meets = crosswalk[ITEM].isin(later[ITEM]).map({True: "another film", False: "no film"})
    meets = meets.where(crosswalk[ITEM] != crosswalk["movieId"].fillna(""), "the right film").rename("join")
    counts = crosswalk[ITEM].map(ratings.value_counts()).fillna(0).astype(int)
    table = counts.groupby(meets).agg(items="size", ratings="sum")
    table = table.reindex(["the right film", "another film", "no film"], fill_value=0)
    table = table.assign(share_of_ratings=table["ratings"] / max(len(ratings), 1))
    return pd.DataFrame(table.reset_index(names="join"))


def genre_neighbours(
    items: pd.DataFrame, crosswalk: pd.DataFrame, later: pd.DataFrame, *, title: str = "Toy Story", n: int = 10
) -> pd.DataFrame:
    """The films whose genres are most like those of ``title``: with genres of the right film, and of a join by id.

    Similarity is the cosine of genre vectors weighted by inverse document frequency; ties go to the earlier film. Where
    ``title`` has no counterpart the first film that has one is taken.
    """
    genres = dict(zip(later[ITEM], later["genres"], strict=True))
    shown = (items["title"] + " (" + items["year"].astype("string") + ")").fillna(items["title"]).tolist()
    known = crosswalk["movieId"].notna().to_numpy()
    film = int(np.argmax(known & (items["title"] == title).to_numpy()) or np.argmax(known))
    lists: dict[str, list[Any]] = {"rank": list(range(1, min(n, len(items) - 1) + 1))}
    for name, ids in ((f"like {shown[film]}", crosswalk["movieId"].fillna("")), ("joined by id", crosswalk[ITEM])):
        flags = genre_matrix([genres.get(i, []) for i in ids])[0].toarray().astype(float)
        weighted = flags * np.log((1 + len(flags)) / (1 + flags.sum(axis=0)))
        length = np.linalg.norm(weighted, axis=1)
        near = weighted @ weighted[film] / np.where(length > 0, length, 1)
        near[film] = -1
        lists[name] = [shown[i] for i in np.argsort(-near.round(9), kind="stable")[:n] if i != film]
    return pd.DataFrame(lists)


def cold_content(
    data: Interactions, item_folds: pd.DataFrame, items: pd.DataFrame, later: pd.DataFrame, *, rng: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """(U,) ndcg@10 on cold items: of content (a later edition's genres) by how films were joined, of two plain orders.

    Parameters
    ----------
    items, later : item_id, movie_id; item_id (the movieId), genres
    """
    genres = dict(zip(later[ITEM], later["genres"], strict=True))
    models = {
        name: ContentModel(items.assign(genres=[genres.get(i, []) for i in items[by].fillna("")]), ["genres"])
        for name, by in {MATCHED: "movie_id", JOINED: ITEM}.items()
    }
    cases = [cold_item_case(data, item_folds, fold) for fold in sorted(item_folds["fold"].unique())]
    tables = {name: [rank_and_measure(model.fit(c.train), c) for c in cases] for name, model in models.items()}
    tables["random"] = [rank_and_measure(rng.random(c.profiles.shape, np.float32), c) for c in cases]
    tables["catalogue-order"] = [rank_and_measure(np.zeros(c.profiles.shape, np.float32), c) for c in cases]
    return {name: align(pd.concat(parts), data.users)[NDCG].to_numpy() for name, parts in tables.items()}


def join_figure(joined: pd.DataFrame) -> Figure:
    """On which film the ratings end up when item_id is joined to movieId."""
    figure, ax = plt.subplots(figsize=(6.5, 1.9))
    bars = ax.barh(joined["join"], joined["share_of_ratings"], color=["C0", "C3", "0.7"])
    ax.bar_label(bars, [f"{share:.1%}" for share in joined["share_of_ratings"]], padding=3)
    ax.set(xlabel="share of ratings", xlim=(0, 1.1))
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return figure
