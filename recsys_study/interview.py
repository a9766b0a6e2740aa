"""The command ``recsys elicit``: a person answers questions, and every answer is saved at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from recsys_utils.base import ITEM, RATING, InputError, Scale

COLUMNS = [ITEM, "title", "year", RATING]


def interview(questions: pd.DataFrame, scale: Scale, out: Path, ask: Callable[[str], str]) -> int:
    """Ask about the items of ``questions`` (item_id, title, year) in turn; return the number of ratings in ``out``.

    An empty answer means "I don't know it", ``q`` ends. Answers that ``out`` already holds are kept and not asked for
    again, so an interview can be continued. The file (item_id,title,year,rating) is one that ``own_ratings.read``
    takes.

    Raises
    ------
    InputError : ``out`` holds something else.
    """
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise InputError(f"{out} can't be written: name a file in a folder that exists.")
    given = pd.DataFrame(columns=COLUMNS, dtype=object)
    if out.exists():
        with contextlib.suppress(UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError):
            given = pd.read_csv(out, dtype=str, keep_default_na=False)
        if list(given.columns) != COLUMNS or given.empty:
            raise InputError(f"{out} holds no answers of an earlier interview; name another file.")
    left = questions[~questions[ITEM].isin(given[ITEM])]
    for number, row in enumerate(left.to_dict("records"), start=1):
        year = "" if pd.isna(row["year"]) else str(row["year"])
        question = f"{number}/{len(left)}  {row['title']}{year and f' ({year})'}: {scale.lo:g} to {scale.hi:g}, "
        while not _is_answer(rating := ask(f"{question}Enter = don't know it, q = enough: ").strip(), scale):
            continue
        if rating == "q":
            break
        if rating:
            given.loc[len(given)] = [row[ITEM], row["title"], year, rating]
            partial = out.with_name(f".{out.name}.tmp")
            given.to_csv(partial, index=False, lineterminator="\n", encoding="utf-8")
            os.replace(partial, out)
    return len(given)


def _is_answer(text: str, scale: Scale) -> bool:
    """Whether it is a rating on the scale, "" for not known or "q" for enough."""
    with contextlib.suppress(ValueError):
        return text in ("", "q") or scale.lo <= float(text) <= scale.hi
    return False
