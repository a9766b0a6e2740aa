"""A person's own ratings: from whatever file they have to a row over the catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from recsys_utils.base import ITEM, RATING, TIMESTAMP, InputError, Scale, counted
from recsys_utils.data.titles import REVIEWED, TitleIndex, article, normalise, split_year
from recsys_utils.personal.layouts import PLAIN, THUMBS, Entry, content, csv_rows, decoded, listed, load

REVIEW = ["imdb_id", "tmdb_id", "title", "year", RATING, "reason", ITEM]
NONE = "none"  # in a review file: this film is not in the catalogue
_SUGGESTED = 10  # unmatched titles that get a suggestion; looking for likeness is slow
# films whose MovieLens ids are known: a catalogue is under these ids (1M and later) when it agrees; ML-100K's is not
_MOVIELENS = {"2": "Jumanji", "10": "GoldenEye", "150": "Apollo 13", "296": "Pulp Fiction", "356": "Forrest Gump",
              "480": "Jurassic Park", "2571": "The Matrix"}  # fmt: skip


@dataclass(frozen=True)
class OwnRatings:
    """What was understood of a file.

    Attributes
    ----------
    frame : item_id, rating float32 on the data set's scale; one row a film, in the file's order
    unmatched : a line of text per title that names no film of the catalogue, or more than one
    raw : aligned with frame: item_id, raw (the value in the file), lo, hi (its scale), timestamp (seconds, 0 =
        unknown), matched_by (item_id, imdb, tmdb, movielens, title or review)
    views : films seen and not rated; in a profile they count as ``view_rating``: the person's mean, or where they rated
        nothing the lowest like
    source : the kind of file, and its scale
    scale : of all the ratings, where they have one and were mapped from it linearly
    total : films of the file, rated or seen
    notes : sentences on what else a person should know
    """

    frame: pd.DataFrame
    unmatched: tuple[str, ...]
    raw: pd.DataFrame = field(default_factory=pd.DataFrame)
    views: tuple[str, ...] = ()
    view_rating: float = 0.0
    source: str = ""
    scale: Scale | None = None
    total: int = 0
    notes: tuple[str, ...] = ()

    @property
    def matched(self) -> float:
        """Share of the file's films that are films of the catalogue, 0-1."""
        return (len(self.frame) + len(self.views)) / max(1, self.total)

    @property
    def report(self) -> str:
        """One paragraph: how many ratings count, on which scale, and which titles don't."""
        views = f" and {counted(len(self.views), 'view')}" if self.views else ""
        text = f"{counted(len(self.frame), 'rating')}{views} matched the catalogue"
        text += f" ({self.matched:.1%} of {self.total}; {self.source})."
        if self.unmatched:
            text += f" Left out: {counted(len(self.unmatched), 'title')} that did not, {listed(self.unmatched)}."
        return " ".join([text, *self.notes])

    def profile(self, items: Sequence[str]) -> csr_matrix:
        """(1, I) float32 ratings over the catalogue ``items``, as every recommender takes them."""
        columns = pd.Index(items).get_indexer(pd.Index([*self.frame[ITEM], *self.views]))
        values = np.r_[self.frame[RATING].to_numpy(np.float32), np.full(len(self.views), self.view_rating, np.float32)]
        return csr_matrix(
            (values, (np.zeros(len(columns), np.int32), columns)), shape=(1, len(items)), dtype=np.float32
        )


def read(
    source: str | Path,
    items: pd.DataFrame,
    scale: Scale,
    *,
    source_scale: Scale | None = None,
    reference: ArrayLike | None = None,
    review: Path | None = None,
) -> OwnRatings:
    """Read a person's ratings from a file (csv, json or zip), or from standard input ("-").

    UTF-8, UTF-16 or Latin-1; comma, semicolon or tab; further columns are ignored; the year may be empty. Series,
    episodes and games are left out. Of several ratings of a film the latest counts; where nothing says which that is
    (a plain table without dates) they are refused.

    A rating v on the source's scale [a, b] becomes lo + (v - a) (hi - lo) / (b - a), or, given a ``reference``, its
    quantile at v's mid-rank among this person's ratings.

    Parameters
    ----------
    items : the catalogue, with item_id, title and year; imdb_id and tmdb_id where known
    scale : the rating scale of the data the models were fitted on
    source_scale : of the file, for tables that don't state it, or to overrule what the layout says
    reference : ratings of the data set, for the quantile map; None maps linearly
    review : a CSV of films that were not matched. What a person filled in under item_id is used ("none": leave it out),
        then it is written again with what is open.

    Raises
    ------
    InputError : no such file, not a table, a missing column, no rows, a rating that is no number or off the scale, an
        unknown item_id, a film rated twice, several people's ratings, an ambiguous scale, or no title that matches.

    >>> import tempfile
    >>> items = pd.DataFrame({"item_id": ["7"], "title": ["Usual Suspects, The"], "year": [1995]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "mine.csv"
    ...     _ = path.write_text("title,year,rating\\nThe Usual Suspects,1996,5\\n", encoding="utf-8")
    ...     read(path, items, Scale(1, 5)).frame.to_numpy().tolist()
    [['7', 5.0]]
    """
    name = "standard input" if str(source) == "-" else str(source)
    layout, entries, notes = load(content(source, name), name, source_scale or scale, source_scale is not None)
    if layout.scale is None and source_scale is None:
        _refuse_ambiguous([e.rating for e in entries if e.rating is not None], name, scale)
    decided = _decisions(review, set(items[ITEM])) if review else {}
    _match(entries, items, name, decided)
    if review:
        _write_review(review, entries, decided)
    open_ones = {e.key: f"{e.shown}{e.reason}" for e in entries if not e.item and decided.get(e.key) != NONE}
    found = [e for e in entries if e.item]
    if not found:
        raise InputError(f"No title of {name} names a film of the catalogue: {listed(list(open_ones.values()))}.")
    kept, twice = _latest(found, items, name, strict=layout is PLAIN)
    if twice:
        notes.append(f"Rated more than once, so that the latest rating counts: {listed(twice)}.")
    rated = [e for e in kept if e.rating is not None]
    values = _mapped(rated, scale, reference)
    view_rating = float(values.mean()) if rated else scale.liked
    views = tuple(str(e.item) for e in kept if e.rating is None)
    if views:
        why = "your mean rating" if rated else "the lowest like"
        notes.append(f"Films seen without a rating count as {view_rating:.2g}, {why}.")
    raw = pd.DataFrame(
        [(e.item, e.rating, e.scale.lo, e.scale.hi, int(e.when), e.by) for e in rated],
        columns=[ITEM, "raw", "lo", "hi", TIMESTAMP, "matched_by"],
    )
    frame = pd.DataFrame({ITEM: raw[ITEM], RATING: values.astype(np.float32)})
    used = {e.scale for e in rated}
    one = used.pop() if len(used) == 1 and reference is None and THUMBS not in used else None
    total, kind = len(kept) + len(open_ones), f"{layout.name}, {_scales(rated, scale, reference is not None)}"
    return OwnRatings(frame, tuple(open_ones.values()), raw, views, view_rating, kind, one, total, tuple(notes))


def _refuse_ambiguous(ratings: Sequence[float], name: str, scale: Scale) -> None:
    """Stars given for points: on a scale of ten or so, ratings that all fit five stars may be either."""
    if ratings and scale.hi >= 9 and max(ratings) <= 5:
        own = f"{scale.lo:g}-{scale.hi:g}"
        raise InputError(
            f"The ratings of {name} end at {max(ratings):g} while these data use {own}: they may be "
            f"stars or points. Say which: --scale 0.5-5, or --scale {own}."
        )


# ---- from entries to films


def _number(text: object) -> int | None:
    """The number in an IMDb or TMDB id: tt0114709, 0114709, 114709.0 or an address that holds the first."""
    found = re.search(r"\btt(\d{1,12})\b", str(text)) or re.fullmatch(r"(\d{1,12})(?:\.0)?", str(text))
    return int(found[1]) if found else None


def _ids(items: pd.DataFrame, column: str) -> list[int | None]:
    return [_number(v) for v in items[column]] if column in items else [None] * len(items)


def _match(
    entries: Iterable[Entry], items: pd.DataFrame, name: str, decided: Mapping[tuple[str, ...], str]
) -> None:  # fmt: skip
    """Fill in the film of each entry: by the person's decision, by id, else by title and year unless an id objects."""
    known = {str(i): n for n, i in enumerate(items[ITEM])}
    unknown = [e.names["item"] for e in entries if e.names["item"] and e.names["item"] not in known]
    if unknown:
        raise InputError(
            f"{name} names {counted(len(unknown), 'film')} not in the catalogue: item_id {listed(unknown)}. "
            f"The catalogue has {len(known):,} films, for example {', '.join(items[ITEM].head(3))}."
        )
    ids = {"imdb": _ids(items, "imdb_id"), "tmdb": _ids(items, "tmdb_id")}
    by_id = {kind: {v: n for n, v in reversed(list(enumerate(values))) if v} for kind, values in ids.items()}
    anchors = [normalise(items["title"].iloc[known[i]]) == normalise(t) for i, t in _MOVIELENS.items() if i in known]
    movielens = known if len(anchors) > 1 and all(anchors) else {}
    reviewed = {(normalise(t), y): _number(i) for title, i in REVIEWED.items() for t, y in [split_year(title)]}
    index = TitleIndex.of(items)
    suggestions = _SUGGESTED
    for e in entries:
        if e.key in decided:
            e.item, e.by = (None, "") if decided[e.key] == NONE else (decided[e.key], "review")
            continue
        numbers = {kind: _number(e.names[kind]) for kind in ids}
        numbers["imdb"] = numbers["imdb"] or reviewed.get((normalise(e.names["title"]), e.year))
        hits = [(known.get(e.names["item"]), "item_id"), (movielens.get(e.names["movielens"]), "movielens")]
        hits += [(by_id[kind].get(number), kind) for kind, number in numbers.items() if number]
        row, e.by = next(((n, by) for n, by in hits if n is not None), (None, "title"))
        if row is None and e.names["title"]:
            row, e.reason = _by_title(e, index, ids, numbers)
        if row is not None:
            e.item = str(items[ITEM].iloc[row])
        elif e.names["title"] and not e.reason and suggestions:
            suggestions -= 1
            near = index.close(e.names["title"][:100], n=2)
            e.reason = f" (did you mean {' or '.join(near)}?)" if near else ""
        elif e.names["movielens"] and not movielens:
            e.reason = " (this catalogue is not under MovieLens' movieIds: give imdb_id, tmdb_id or title)"


def _by_title(
    e: Entry, index: TitleIndex, ids: Mapping[str, list[int | None]], numbers: Mapping[str, int | None]
) -> tuple[int | None, str]:  # fmt: skip
    """The catalogue row a title names, or None and why; a film whose known id is not the one given is another film."""
    for title in filter(None, (e.names["title"], e.names["original"])):
        found = [
            n for n in index.find(title, e.year)
            if all(number is None or ids[kind][n] in (None, number) for kind, number in numbers.items())
            # a year off by one is often a later release, but not of "Circle" when the other is "The Circle"
            and (e.year in (None, index.years[n]) or article(index.titles[n]) == article(title))
        ]  # fmt: skip
        if len({index.years[n] for n in found}) > 1:
            return None, f" (say which year: {', '.join(str(index.years[n]) for n in found)})"
        if found:
            # some catalogues hold a film under two ids of the same title and year: the first one stands for it
            return found[0], ""
    return None, ""


def _latest(found: list[Entry], items: pd.DataFrame, name: str, strict: bool) -> tuple[list[Entry], list[str]]:
    """One entry a film in the file's order, and the films whose ratings differed; ``strict``: dates must tell."""
    last: dict[str, Entry] = {}
    twice: dict[str, str] = {}
    for e in found:
        item = str(e.item)
        before = last.setdefault(item, e)
        if before is e:
            continue
        if strict and e.when == before.when:
            title = items.loc[items[ITEM] == item, "title"].iloc[0]
            lines = f"{before.where.replace('line', 'lines')} and {e.where.removeprefix('line ')}"
            raise InputError(f"{name} rates {title} (item_id {item}) twice, in {lines}; keep one of them.")
        if None not in (e.rating, before.rating) and e.rating != before.rating:
            twice[item] = e.shown
        if (e.rating is not None, e.when) >= (before.rating is not None, before.when):
            last[item] = e
    return list(last.values()), list(twice.values())


def _mapped(rated: Sequence[Entry], scale: Scale, reference: ArrayLike | None) -> NDArray[np.float64]:
    """Ratings on the data set's scale, one an entry."""
    linear = []
    for e in rated:
        ends = (e.scale.lo, e.scale.hi), (scale.lo, scale.hi)
        knots = ((1, 2, 3), (scale.lo, scale.liked, scale.hi)) if e.scale is THUMBS else ends
        linear.append(float(np.interp(e.rating or 0.0, *knots)))
    values = np.asarray(linear, np.float64)
    if reference is None or not rated:
        return values
    place = (pd.Series(values).rank(method="average").to_numpy() - 0.5) / len(values)
    return np.asarray(np.quantile(np.asarray(reference, np.float64), place, method="inverted_cdf"))


def _scales(rated: Sequence[Entry], scale: Scale, by_quantiles: bool) -> str:
    """'scale 1-10 mapped onto 1-5': what was read, and what was done to it."""
    used = list(dict.fromkeys("thumbs" if e.scale is THUMBS else f"{e.scale.lo:g}-{e.scale.hi:g}" for e in rated))
    target = f"{scale.lo:g}-{scale.hi:g}"
    if not used:
        return "no ratings"
    if by_quantiles:
        return f"scale {' and '.join(used)} mapped by quantiles onto {target}"
    return f"scale {' and '.join(used)}" + (f" mapped onto {target}" if used != [target] else "")


# ---- what a person decides


def _decisions(path: Path, known: set[str]) -> dict[tuple[str, ...], str]:
    """What was filled in: the key of a film -> its item_id, or "none"."""
    if not path.exists():
        return {}
    header, rows = csv_rows(decoded(content(path, str(path)), str(path))[0], str(path))
    if missing := [c for c in REVIEW if c not in header]:
        raise InputError(f"The review file {path} has no column {', '.join(missing)}; delete it to make it anew.")
    decided = {tuple(row[c] for c in REVIEW[:4]): row[ITEM] for _, row in rows if row[ITEM]}
    if unknown := [i for i in decided.values() if i not in known and i != NONE]:
        raise InputError(
            f"The review file {path} names item_id {listed(unknown)}, not in the catalogue; or write none."
        )
    return decided


def _write_review(path: Path, entries: Iterable[Entry], decided: Mapping[tuple[str, ...], str]) -> None:
    """Films still open (item_id empty) and those decided before, once each."""
    lines: dict[tuple[str, ...], tuple[Any, ...]] = {k: (*k, None, "", item) for k, item in decided.items()}
    lines |= {
        e.key: (*e.key, e.rating, e.reason.strip(" ()"), decided.get(e.key, ""))
        for e in entries if not e.item or e.key in decided
    }  # fmt: skip
    part = path.with_name(f"{path.name}.part")
    pd.DataFrame(lines.values(), columns=REVIEW).to_csv(part, index=False, lineterminator="\n")
    part.replace(path)
