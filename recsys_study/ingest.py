"""From a fetched data set to the tables a run starts from, and what these data allow a study to ask."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.sparse import csr_matrix
from sklearn.preprocessing import normalize

from recsys_utils.base import ITEM, TIMESTAMP, USER, InputError
from recsys_utils.data import catalogue, movielens, synthetic, titles
from recsys_utils.data.catalogue import BUILT_IN, LISTS, Catalogue, Facts, Source
from recsys_utils.data.fetch import UNREADABLE, Archive, Fetched, find_archive
from recsys_utils.data.interactions import DAY, Interactions, item_counts, sessions
from recsys_utils.data.titles import Crosswalk
from recsys_utils.evaluation.metrics import genre_matrix
from recsys_utils.evaluation.protocols import Mask, target_size
from recsys_utils.personal import film_facts

FEWEST = 10
"""Ratings below which no protocol tests a user: five to know and five to find."""
DEALS = 199  # random deals of facts that the items' own facts are compared with
MANY_VALUES = 12  # more different ratings than this are drawn as ranges


# ---- tables


@dataclass(frozen=True)
class Tables:
    """What a data set holds, in the study's columns.

    Attributes
    ----------
    ratings : user_id (with prefix), item_id, rating float32, timestamp int64, in published order
    catalogue : the films and where their facts come from; ``items`` are its films in natural order of item_id
    crosswalk : counterparts in the links archive, where one was given and ids differ
    later : that archive's films, to compare with, and what files of IMDb know about them
    truth : the generator's truth where the data are synthetic
    notes : what was done to the data, one sentence each
    """

    ratings: pd.DataFrame
    catalogue: Catalogue
    crosswalk: Crosswalk | None = None
    later: pd.DataFrame | None = None
    truth: synthetic.Synthetic | None = None
    notes: tuple[str, ...] = ()

    @property
    def items(self) -> pd.DataFrame:
        return self.catalogue.items

    def meta(self, fetched: Fetched) -> dict[str, Any]:
        """meta.json: the data set, what contributed to it, and what was done to it."""
        meta = fetched.meta() | self.catalogue.meta()
        meta["has_billing_order"] = self.truth is not None or self.catalogue.has_billing_order
        meta["notes"] = [*meta["notes"], *self.notes]
        return meta


def build(
    fetched: Fetched,
    *,
    sources: Sequence[str] = ("genome", "tags", "graph"),
    links: Path | None = None,
    review: Path | None = None,
    merge_doubles: bool = False,
    interim: Path = Path("data/interim"),
    share: float = 1.0,
) -> Tables:
    """Read or generate the tables.

    Parameters
    ----------
    sources : where facts about films come from, the first that has one counts: ``BUILT_IN`` by name, and files of
        TMDB, The Movies Dataset or IMDb
    links : a zip with links.csv and movies.csv of a later edition, for data sets that lack them
    review : the crosswalk's review table, filled in
    merge_doubles : make one film of those that have two ids; a user's later rating counts. Off by default, since
        published results on ML-100K keep its 1,682 ids.
    interim : folder of caches, for sources that are fetched film by film
    share : of generated data, the part of users and ratings to make (see ``synthetic.Size.part``); else 1

    Raises
    ------
    InputError : an archive, a file or a decision that can't be used.

    >>> from recsys_utils.data.fetch import fetch
    >>> build(fetch("smoke", raw=Path("unused"))).ratings.columns.tolist()
    ['user_id', 'item_id', 'rating', 'timestamp']
    """
    dataset = fetched.dataset
    if dataset.synthetic is not None:
        truth = synthetic.generate(dataset.synthetic.part(share) if share < 1 else dataset.synthetic)
        made = (f"Generated at a share of {share:g}: {truth.size.users:,} users.",)
        return Tables(truth.ratings, catalogue.merge(truth.items), truth=truth, notes=made if share < 1 else ())
    api = film_facts.TmdbApi(film_facts.tmdb_token()) if "tmdb" in sources else None
    _refuse_contradictions(fetched, share, links, review)
    ratings, films, notes = _published(fetched, merge_doubles)
    edition = _open_links(links) if links is not None else None
    crosswalk = later = None
    if edition is not None and dataset.own_ids:
        later = edition.films().merge(edition.facts("links"), on=ITEM)
        crosswalk = titles.match(films, later, titles.read_review(review, films, later) if review else None)
    if dataset.url:
        films["movie_id"] = films[ITEM] if not dataset.own_ids else films[ITEM].map(titles.movie_ids(crosswalk))
    facts = _from_archives("links", fetched, edition)
    known = pd.concat([films, *(one.table[one.table[one.key].isin(films[one.key])] for one in facts)])
    files = [Path(name) for name in sources if name not in BUILT_IN]
    found = film_facts.read(files, pd.concat([known, later]).reindex(columns=catalogue.IDS))
    for name in sources:
        if api is not None and name == "tmdb":
            told, more = film_facts.tmdb_facts(known["tmdb_id"].dropna(), interim / "tmdb.sqlite", api)
            facts, notes = [*facts, told], (*notes, *more)
        else:
            facts += _from_archives(name, fetched, edition) if name in BUILT_IN else found[Path(name)]
    if later is not None:
        later = catalogue.merge(later, [one for one in facts if one.key == "imdb_id"]).items
    return Tables(ratings, catalogue.merge(films, facts), crosswalk, later, notes=notes)


def _refuse_contradictions(fetched: Fetched, share: float, links: Path | None, review: Path | None) -> None:
    dataset, archive = fetched.dataset, fetched.archive
    if share < 1:
        raise InputError(
            f"dataset.share = {share:g}: {dataset.name} is not generated and comes whole; leave share out."
        )
    if links is not None and archive is not None and "links" in archive.sources():
        raise InputError(f"{dataset.name} has its own links; leave dataset.links empty (got {links}).")
    if review is not None and (links is None or not dataset.own_ids):
        raise InputError(f"dataset.review needs dataset.links, and a data set with ids of its own (got {review}).")


def _published(fetched: Fetched, merge_doubles: bool) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    """Ratings and films as they came, or with one id for each film, and what was done."""
    if fetched.own is not None:
        ratings, films = fetched.own.ratings, fetched.own.items
    else:
        assert fetched.archive is not None
        films = fetched.archive.films()
        with tempfile.TemporaryDirectory() as scratch:  # never whole as text
            target = Path(scratch) / "ratings.parquet"
            fetched.ratings_to(target)
            ratings = pd.read_parquet(target)
    return merge_twins(ratings, films) if merge_doubles else (ratings, films, ())


def merge_twins(ratings: pd.DataFrame, films: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, tuple[str, ...]]:
    """One film for each that has two ids (same title and year): the first id, and a user's later rating.

    Returns ratings, films, and a sentence that says how many were concerned.
    """
    first = dict(titles.doubles(films).to_numpy())
    moved = ratings.assign(**{ITEM: ratings[ITEM].replace(first)})
    latest = moved[TIMESTAMP].sort_values(kind="stable").index
    kept = moved.loc[latest].drop_duplicates([USER, ITEM], keep="last").sort_index().reset_index(drop=True)
    done = (
        f"{len(first)} films with two ids were merged: {int(ratings[ITEM].isin(first).sum())} ratings moved to the "
        f"first id, {len(moved) - len(kept)} gave way to the same user's later rating."
    )
    return kept, films[~films[ITEM].isin(first)].reset_index(drop=True), (done,)


def _open_links(path: Path) -> Archive:
    """A zip of a later edition, for its ids and tags; InputError when it has no links.csv and movies.csv."""
    try:
        if found := find_archive(path, {"links": movielens.ML_LINKS}):
            return found
    except UNREADABLE as error:
        raise InputError(f"dataset.links: {path} can't be read as a zip archive ({error}).") from None
    raise InputError(
        f"dataset.links: {path} has no folder with links.csv and movies.csv; give a zip of ml-latest-small or later."
    )


def _from_archives(name: str, fetched: Fetched, edition: Archive | None) -> list[Facts]:
    """What the archives at hand have under one of their sources; nothing where none has it.

    A later edition and the film graph use movieIds; a data set its own ids.
    """
    for archive in (fetched.archive, fetched.graph, edition):
        if archive is None or name not in archive.sources():
            continue
        cite = f"MovieLens {name} ({archive.path.name}): {fetched.dataset.cite}"
        source = movielens.GRAPH if name == "graph" else Source(name, fetched.dataset.licence, cite)
        key = "movie_id" if archive is edition or name == "graph" else ITEM
        return [Facts(source, archive.facts(name).rename(columns={ITEM: key}), key)]
    return []


# ---- what the data are


def describe(data: Interactions) -> dict[str, float]:
    """The shape of a data set in a few numbers; shares are in 0-1, time in days (left out where there is none)."""
    per_user, per_item = np.bincount(data.user, minlength=data.shape[0]), item_counts(data.user_item)
    top = np.sort(per_item)[::-1][: max(1, len(per_item) // 10)]
    facts = {
        "users": data.shape[0],
        "items": data.shape[1],
        "ratings": len(data),
        "density": len(data) / (data.shape[0] * data.shape[1]),
        "mean_rating": float(data.rating.mean()),
        "share_of_likes": float((data.rating >= data.scale.liked).mean()),
        "fewest_ratings_of_a_user": int(per_user.min()),
        "median_ratings_of_a_user": float(np.median(per_user)),
        "most_ratings_of_a_user": int(per_user.max()),
        "users_too_small_to_test": int((per_user < FEWEST).sum()),
        "median_ratings_of_an_item": float(np.median(per_item)),
        "items_never_rated": int((per_item == 0).sum()),
        "share_of_ratings_on_top_tenth": float(top.sum() / len(data)),
    }
    data = data.where(data.timestamp > 0)  # a store may hold ratings without a date
    if len(data):
        times = pd.Series(data.timestamp).groupby(data.user)
        same = pd.DataFrame({"user": data.user, "time": data.timestamp}).duplicated(keep=False)
        facts |= {
            "days_covered": float((data.timestamp.max() - data.timestamp.min()) / DAY),
            "share_of_users_with_one_visit": float((pd.Series(sessions(data)).groupby(data.user).max() == 0).mean()),
            "median_minutes_from_first_to_last_rating": float((times.max() - times.min()).median() / 60),
            "share_of_ratings_in_the_same_second": float(same.mean()),
        }
    return facts


def content_facts(items: pd.DataFrame) -> dict[str, bool]:
    """What is known about items: which later questions can be answered.

    >>> content_facts(catalogue.merge(pd.DataFrame({"item_id": ["1"], "title": ["Heat"], "year": [1995]})).items)
    {'has_text': False, 'has_genres': False, 'has_titles': True}
    """
    has_text, has_genres = (bool(items[list(fields)].map(len).any(axis=None)) for fields in (
        (*LISTS, "overview"), ("genres",)))  # fmt: skip
    return {"has_text": has_text, "has_genres": has_genres, "has_titles": bool((items["title"] != items[ITEM]).any())}


def alike(items: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """Are facts those of the right items? Items that share a director should be more alike in genre than others.

    Facts joined by the wrong id give every item some director, and no check of types notices; but then what items share
    has nothing to do with their genres. For each field of names: ``pairs`` of items that share one, the mean cosine of
    their genre vectors, the same with facts dealt at random among the items that have any (mean of 199 deals), and p,
    the share of deals that reach the items' own value (one added to both, so never 0).

    Parameters
    ----------
    items : genres and at least one of keywords, directors, actors, writers, lists of names; a field that no two items
        with a genre share gives no row

    >>> films = pd.DataFrame({"genres": [["War"], ["War"], ["Love"], ["Love"]] * 5})
    >>> films["directors"] = [["a"], ["a"], ["b"], ["b"]] * 5
    >>> alike(films, np.random.default_rng(0))[["field", "pairs", "cosine", "p"]].to_numpy().tolist()
    [['directors', 90, 1.0, 0.005]]
    """
    rows = []
    for field in [column for column in LISTS[1:] if column in items]:
        known = items[(items[field].map(len) > 0) & (items["genres"].map(len) > 0)]
        kinds, members = (genre_matrix(known[column].tolist())[0] for column in ("genres", field))
        if (members.getnnz(axis=0) < 2).all():
            continue
        vectors, members = normalize(kinds), members.T.tocsr()
        own, pairs = _mean_cosine(members, vectors)
        dealt = np.array([_mean_cosine(members, vectors[rng.permutation(len(known))])[0] for _ in range(DEALS)])
        p = (1 + np.count_nonzero(dealt >= own)) / (1 + DEALS)
        rows.append((field, len(known), pairs, own, dealt.mean(), p))
    return pd.DataFrame(rows, columns=["field", "items", "pairs", "cosine", "cosine_by_chance", "p"])


def _mean_cosine(members: csr_matrix, vectors: csr_matrix) -> tuple[float, int]:
    """Mean cosine of unit vectors (items, D) over the pairs of each group of items (groups, items), and their number.

    The sum over the pairs of a group is (|sum v|^2 - n) / 2, so no pair is formed.
    """
    size = members.getnnz(axis=1)
    pairs = int((size * (size - 1)).sum()) // 2
    return float(((members @ vectors).power(2).sum() - size.sum()) / 2 / pairs), pairs


def extra_files(tables: Tables, data: Interactions) -> dict[str, Any]:
    """What only some data have, by file name: the crosswalk and the later edition's films, the generator's truth.

    truth.json adds ``rmse`` of predicting the truth, ``noise_seen`` where clipping does not reach (``error`` was
    planted), and ``appeal_seen``, the correlation of planted appeal with log(1 + ratings).
    """
    files: dict[str, Any] = {} if tables.later is None else {"later.parquet": tables.later}
    if tables.crosswalk is not None:
        files["crosswalk.parquet"] = tables.crosswalk.table.merge(tables.crosswalk.doubles, how="left")
        files["crosswalk_review.parquet"] = tables.crosswalk.review
    if tables.truth is None or len(data) > len(tables.ratings):  # ratings of a store have no known truth
        return files
    users, items, meta = tables.truth.truth()
    expected, scale = tables.truth.expected_at(data.user, data.item), data.scale
    inside = (expected > scale.lo + 1) & (expected < scale.hi - 1)
    meta["noise_seen"] = float((data.rating - expected)[inside].std())
    meta["appeal_seen"] = float(np.corrcoef(tables.truth.appeal, np.log1p(item_counts(data.user_item)))[0, 1])
    meta["rmse"] = float(np.sqrt(np.square(data.rating - np.clip(expected, scale.lo, scale.hi)).mean()))
    return files | {"truth_users.parquet": users, "truth_items.parquet": items, "truth.json": meta}


def profile_sizes(data: Interactions) -> pd.DataFrame:
    """How many users have a profile of n ratings beside their target."""
    counts = np.bincount(data.user, minlength=len(data.users))
    room = counts - target_size(counts)
    sizes = [0, 1, 2, 3, 5, 8, 10, 15, 20, 30, 50, 100]
    return pd.DataFrame({"profile size": sizes, "users who have it": [int((room >= n).sum()) for n in sizes]})


# ---- figures


def data_shape(data: Interactions) -> Figure:
    """How ratings are distributed over values, items and users."""
    per_user = np.sort(np.bincount(data.user, minlength=len(data.users)))[::-1]
    per_item = np.sort(item_counts(data.user_item))[::-1]
    values, counts = np.unique(data.rating, return_counts=True)
    if len(values) > MANY_VALUES:
        counts, edges = np.histogram(data.rating, bins=20)
        values = (edges[:-1] + edges[1:]) / 2
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10.5, 3.3))
    colours = ["C0" if value >= data.scale.liked else "C3" for value in values]
    left.bar(values, counts / len(data), color=colours, width=0.8 * np.diff(values, append=np.inf).min(initial=1))
    if len(values) <= MANY_VALUES:
        left.set_xticks(values, [f"{value:g}" for value in values])
    left.set(xlabel="rating (blue = liked)", ylabel="share of ratings", title="Which ratings are given")
    left.grid(axis="x", visible=False)
    middle.plot(np.arange(1, len(per_item) + 1) / len(per_item), np.cumsum(per_item) / len(data), color="C0")
    middle.plot([0, 1], [0, 1], color="C3", linestyle=":")
    middle.set(xlabel="share of items, most rated first", ylabel="share of ratings", title="Which items have them")
    right.plot(np.arange(1, len(per_user) + 1) / len(per_user), per_user, color="C2")
    right.set(
        yscale="log", xlabel="share of users, most active first", ylabel="ratings of a user", title="Who gives them"
    )
    return figure


def data_time(data: Interactions, drawn: Mask) -> Figure | None:
    """When the users under a mask (U,) rate, and how popular what they rate first is; None without time stamps."""
    dated = data.where((data.timestamp > 0) & drawn[data.user])  # a store may hold ratings without a date
    if not len(dated):
        return None
    stamps = pd.Series(dated.timestamp).groupby(dated.user)
    days, order = (dated.timestamp - dated.timestamp.min()) / DAY, stamps.rank(method="first")
    arrival = stamps.min().rank(method="first")[dated.user]
    popularity = pd.Series(item_counts(data.user_item)[dated.item] / len(data.users))
    early = popularity.groupby(order).agg(["median", "size"]).query("size >= 30")["median"].loc[:100]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.9), width_ratios=[1.6, 1])
    later_visit = sessions(dated) > 0
    left.scatter(days, arrival, s=1.2, c=later_visit, cmap="coolwarm", alpha=0.5, linewidths=0, rasterized=True)
    left.set(xlabel="days since the first rating", ylabel="users, by day of arrival")
    left.set_title("Each dot is a rating (red: from a later visit)")
    right.plot(early.index, early, color="C4")
    right.set(
        xlabel="position of the rating in its user's history", ylabel="share of users who rated the item (median)"
    )
    right.set(title="How popular is what users rate first?", ylim=(0, None))
    return figure
