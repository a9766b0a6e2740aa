"""From fetched archives to the tables a run starts from: ratings, films, and who said what about a film."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_utils.base import ITEM, TIMESTAMP, USER, InputError
from recsys_utils.data import catalogue, movielens, synthetic
from recsys_utils.data import film_tables as providers
from recsys_utils.data import titles as crosswalk
from recsys_utils.data.archives import UNREADABLE, folders_with
from recsys_utils.data.catalogue import Catalogue, Facts, Source
from recsys_utils.data.datasets import Archive, Fetched
from recsys_utils.data.titles import Crosswalk

_GRAPH = Source(
    name="graph",
    licence="RecBole (MIT); facts from Freebase (CC BY 2.5), linked by KB4Rec; links as the MovieLens data",
    attribution="Film graph: Freebase (CC BY 2.5) through KB4Rec (W. X. Zhao et al. 2019) and RecBole 1.2.1.",
)


BUILT_IN = ("genome", "tags", "graph", "tmdb")
"""What the list of sources may hold besides files; tmdb is its API, asked only where it is named."""
MOVIE_IDS = Path(__file__).with_name("ml_100k_movie_ids.csv")
FEWEST = 10
"""Ratings below which no protocol tests a user: five to know and five to find."""


@dataclass(frozen=True)
class Tables:
    """What a data set holds, in the study's columns.

    Attributes
    ----------
    ratings : user_id (with prefix), item_id, rating float32, timestamp int64, in published order
    catalogue : the films and where their facts come from; ``items`` are its films in natural order of item_id
    crosswalk : counterparts in the links archive, where one was given and ids differ
    links : that archive's films, to compare with, and what files of IMDb say about them
    truth : the generator's truth where the data are synthetic
    notes : what was done to the data, in a sentence each
    """

    ratings: pd.DataFrame
    catalogue: Catalogue
    crosswalk: Crosswalk | None = None
    links: pd.DataFrame | None = None
    truth: synthetic.Synthetic | None = None
    notes: tuple[str, ...] = ()

    @property
    def items(self) -> pd.DataFrame:
        return self.catalogue.items

    def meta(self, fetched: Fetched) -> dict[str, Any]:
        """meta.json: the data set, what contributed to it, and what was done to it."""
        meta = fetched.meta() | self.catalogue.meta()
        meta["has_billing_order"] = fetched.dataset.has_billing_order or self.catalogue.has_billing_order
        meta["notes"] = [*meta["notes"], *self.notes]
        return meta


def build(
    fetched: Fetched,
    *,
    sources: Sequence[str] = ("genome", "tags", "graph"),
    links: Path | None = None,
    review: Path | None = None,
    merge_doubles: bool = False,
    interim: Path | None = None,
    share: float = 1.0,
) -> Tables:
    """Read or generate the tables.

    Parameters
    ----------
    share : of generated data, the part of users and ratings to make (see ``synthetic.Size.part``); else 1
    sources : who is asked about films, first come first served for each field of a film: ``BUILT_IN`` by name,
        and files of TMDB, The Movies Dataset or IMDb (see ``providers``)
    interim : folder of caches, for sources that are asked over the network (data/interim)
    links : a zip with links.csv and movies.csv of a later edition, for data sets that lack them
    review : the crosswalk's review table, filled in
    merge_doubles : make one film of those that stand under two ids; a user's later rating counts. Off by default, since
        published results on ML-100K keep its 1,682 ids.

    Raises
    ------
    InputError : an archive, a file or a decision that can't be used.

    >>> from recsys_utils.data.datasets import fetch
    >>> build(fetch("smoke", raw=Path("unused"))).ratings.columns.tolist()
    ['user_id', 'item_id', 'rating', 'timestamp']
    """
    dataset, archive = fetched.dataset, fetched.archive
    if dataset.synthetic is not None:
        truth = synthetic.generate(dataset.synthetic.part(share) if share < 1 else dataset.synthetic)
        notes = [f"Generated at a share of {share:g}: {truth.size.users:,} users."] if share < 1 else []
        return Tables(truth.ratings, catalogue.merge(truth.items), truth=truth, notes=tuple(notes))
    if share < 1:
        raise InputError(
            f"dataset.share = {share:g}: {dataset.name} is not generated and comes whole; leave share out."
        )
    api = providers.TmdbApi(providers.tmdb_token()) if "tmdb" in sources else None
    if links is not None and archive is not None and "links" in archive.sources():
        raise InputError(f"{dataset.name} has its own links; leave dataset.links empty (got {links}).")
    if review is not None and (links is None or not dataset.own_ids):
        raise InputError(f"dataset.review needs dataset.links, and a data set with ids of its own (got {review}).")
    if fetched.own is not None:
        ratings, films = fetched.own.ratings, fetched.own.items
    else:
        assert archive is not None
        ratings, films = _ratings(fetched), _films(archive)
    notes = []
    if merge_doubles:
        ratings, films, done = merge(ratings, films)
        notes.append(done)
    later = _open_links(links) if links is not None else None
    walk, others = None, None
    if later is not None and dataset.own_ids:
        others = _films(later).merge(later.facts("links"), on=ITEM)
        walk = crosswalk.match(films, others, crosswalk.read_review(review, films, others) if review else None)
    if dataset.url:
        films["movie_id"] = films[ITEM] if not dataset.own_ids else films[ITEM].map(_movie_ids(walk))
    facts = _inside("links", fetched, later)
    known = catalogue.merge(films, facts).items[catalogue.IDS]
    files = [name for name in sources if name not in BUILT_IN]
    read = providers.read([Path(name) for name in files], known if others is None else pd.concat([known, others]))
    outside = {name: read[Path(name)] for name in files}
    if api is not None:
        told, said = providers.tmdb_facts(
            known["tmdb_id"].dropna(), (interim or Path("data/interim")) / "tmdb.sqlite", api
        )
        outside["tmdb"] = [told]
        notes += said
    for name in sources:
        facts += outside[name] if name in outside else _inside(name, fetched, later)
    if others is not None:
        others = catalogue.merge(others, [one for one in facts if one.key == "imdb_id"]).items
    return Tables(ratings, catalogue.merge(films, facts), walk, others, notes=tuple(notes))


def limits(items: pd.DataFrame, ratings: pd.DataFrame, *, has_time: bool, noun: str) -> list[str]:
    """What a study of these data can't answer, and what it does instead: a sentence for each thing they lack.

    >>> films = catalogue.merge(pd.DataFrame({"item_id": ["1"], "title": ["Heat"], "year": [1995]})).items
    >>> for sentence in limits(films, pd.DataFrame({"user_id": ["a"] * 12}), has_time=True, noun="film"):
    ...     print(sentence)
    Nothing is known about any film but its id and title: there is no content model, and no answer on what content adds.
    """
    few = int((ratings[USER].value_counts() < FEWEST).sum())
    genres, text = (any(items[list(fields)].map(len).any()) for fields in (("genres",), (*catalogue.LISTS, "overview")))
    found = {
        "There are no time stamps: nothing is tested on the future, each user's last fifth is a random fifth, and "
        "profiles grow in random order only.": not has_time,
        f"Nothing is known about any {noun} but its id and title: there is no content model, and no answer on what "
        "content adds.": not text,
        f"No {noun} has a genre: genre strategies, genre distances and calibration are left out.": text and not genres,
        f"No {noun} has a title: lists show ids.": bool((items["title"] == items[ITEM]).all()),
        f"{few:,} of {ratings[USER].nunique():,} users have fewer than {FEWEST} ratings, too few to be tested: models "
        "learn from them, but no number says how well they are served.": few > 0,
    }
    return [sentence for sentence, holds in found.items() if holds]


def _ratings(fetched: Fetched) -> pd.DataFrame:
    """The ratings by way of a temporary parquet file, never whole as text."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "ratings.parquet"
        fetched.ratings_to(target)
        return pd.read_parquet(target)


def _films(archive: Archive) -> pd.DataFrame:
    """item_id, title, year, genres from the members that aren't ratings."""
    _, *names = archive.layout.members
    return archive.layout.films(archive.folder.read(archive.pins(names)))


def _open_links(path: Path) -> Archive:
    """A zip of a later edition, for its ids and tags; InputError when it has no links.csv and movies.csv."""
    try:
        folders = folders_with(path, movielens.ML_LINKS.members)
    except UNREADABLE as error:
        raise InputError(f"dataset.links: {path} can't be read as a zip archive ({error}).") from None
    if not folders:
        raise InputError(
            f"dataset.links: {path} has no folder with links.csv and movies.csv; give a zip of ml-latest-small or "
            "of a later edition."
        )
    return Archive(movielens.ML_LINKS, folders[0], "links")


def _movie_ids(walk: Crosswalk | None) -> dict[str, str]:
    """movieId of the later editions by item_id of ML-100K: by the crosswalk if there is one, else as it was found.

    What stands in the file is the crosswalk to latest-small, ids alone.
    """
    if walk is not None:
        found = walk.table.dropna(subset="movieId")
        return dict(zip(found[ITEM], found["movieId"], strict=True))
    table = crosswalk.read_csv(MOVIE_IDS, MOVIE_IDS.name, [ITEM, "movie_id"])
    return dict(zip(table[ITEM], table["movie_id"], strict=True))


def _inside(name: str, fetched: Fetched, later: Archive | None) -> list[Facts]:
    """What the archives at hand say about films under one of their sources; nothing where none has it.

    A later edition and the film graph speak of movieIds; a data set of its own ids.
    """
    for archive in (fetched.archive, fetched.graph, later):
        if archive is None or name not in archive.sources():
            continue
        told, key = archive.facts(name), ITEM
        if archive is later or name == "graph":
            told, key = told.rename(columns={ITEM: "movie_id"}), "movie_id"
        terms = Source(name, fetched.dataset.licence, f"MovieLens {name} ({archive.path.name}): {fetched.dataset.cite}")
        return [Facts(_GRAPH if name == "graph" else terms, told, key)]
    return []


def merge(ratings: pd.DataFrame, films: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """One film for each that stands under two ids (same title and year): the first id, and a user's later rating.

    Returns ratings, films, and a sentence that says how many were concerned.
    """
    twins = crosswalk.doubles(films)
    first = dict(zip(twins[ITEM], twins["double_of"], strict=True))
    moved = ratings.assign(**{ITEM: ratings[ITEM].replace(first)})
    latest = moved[TIMESTAMP].sort_values(kind="stable").index
    kept = moved.loc[latest].drop_duplicates([USER, ITEM], keep="last").sort_index().reset_index(drop=True)
    done = (
        f"{len(twins)} films that stood under two ids were merged: {int(ratings[ITEM].isin(first).sum())} ratings "
        f"moved to the first id, {len(moved) - len(kept)} gave way to the same user's later rating."
    )
    return kept, films[~films[ITEM].isin(first)].reset_index(drop=True), done
