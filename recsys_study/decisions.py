"""The study's answers in one table: primary contrasts with Holm's correction, and two runs side by side."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_utils.base import InputError
from recsys_utils.evaluation.significance import MARGIN, Estimate, holm, minimum_detectable_difference, verdict

KEY = ["protocol", "model", "variant", "segment", "metric"]
FAMILY_ERROR = 0.05
COLUMNS = [
    "id", "question", "answer", "contrast", "value", "ci_low", "ci_high", "n", "mdd", "p_holm", "verdict", "confidence",
    "what_would_change_it",
]  # fmt: skip


def primary_contrast(question: str, contrast: str, difference: Estimate, margin: float = MARGIN) -> dict[str, Any]:
    """The row of primary.json for a contrast that was declared before its result; a difference, higher is better.

    ``p`` is two-sided and not yet corrected, ``mdd`` the minimum detectable difference in the contrast's unit.

    >>> row = primary_contrast("caching", "stale - fresh", Estimate(-.02, -.03, -.01, 943, .005, -.028, .001))
    >>> row["verdict"], round(row["mdd"], 3)
    ('worse', 0.014)
    """
    return {
        "question": question, "contrast": contrast, "value": difference.value, "ci_low": difference.ci_low,
        "ci_high": difference.ci_high, "n": difference.n, "p": difference.p, "margin": margin,
        "mdd": minimum_detectable_difference(difference), "verdict": verdict(difference, margin),
    }  # fmt: skip


def decision_table(findings: Sequence[Mapping[str, Any]], primaries: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a primary contrast: question, short answer, contrast, interval, Holm's p, verdict, what would change it.

    The family of the correction is every row of ``primaries`` (Holm 1979). A question without a finding is an error, so
    that no contrast is corrected for and then left unanswered.

    Raises
    ------
    ValueError : a contrast names a question that no finding answers.
    """
    answers = {finding["id"]: finding for finding in findings}
    unanswered = sorted({row["question"] for row in primaries} - answers.keys())
    if unanswered:
        raise ValueError(f"no finding answers the primary contrasts of {', '.join(unanswered)}")
    adjusted = holm([row["p"] for row in primaries])
    return pd.DataFrame(
        columns=COLUMNS,
        data=[
            {
                "id": row["question"], "question": answers[row["question"]]["question"],
                "answer": first_sentence(answers[row["question"]]["answer"]), "contrast": row["contrast"],
                **{key: row[key] for key in ("value", "ci_low", "ci_high", "n", "mdd")}, "p_holm": p,
                "verdict": row["verdict"], "confidence": answers[row["question"]]["confidence"],
                "what_would_change_it": what_would_change(row, p),
            }
            for row, p in zip(primaries, adjusted, strict=True)
        ]
    )  # fmt: skip


def what_would_change(row: Mapping[str, Any], p_holm: float) -> str:
    """How far the data are from another verdict: the margin or the number of users at which it turns.

    A half-width h shrinks as 1 / sqrt(users): the interval reaches 0 at (h / value)^2 times as many users. A
    margin that holds the whole interval makes it a tie.

    >>> row = {"value": .1, "ci_low": .08, "ci_high": .12, "n": 900, "margin": .01, "verdict": "better"}
    >>> what_would_change(row, .001)
    'fewer than 36 users, or a margin above 0.12'
    """
    value, low, high = row["value"], row["ci_low"], row["ci_high"]
    half, farthest = (high - low) / 2, max(abs(low), abs(high))
    if row["verdict"] in ("better", "worse"):
        users = (half / value) ** 2 * row["n"]
        text = f"fewer than {max(users, 20):.0f} users, or a margin above {farthest:.2g}"
        return text + ("" if p_holm <= FAMILY_ERROR else "; it does not survive the correction for several questions")
    if row["verdict"] == "tie":
        return f"a margin below {farthest:.2g}"
    to_zero = (half / abs(value)) ** 2 if value else float("inf")
    room = row["margin"] - abs(value)
    to_tie = (half / room) ** 2 if room > 0 else float("inf")
    return f"about {min(to_zero, to_tie):.1f} times as many users, if the difference stays what it is"


def first_sentence(answer: str) -> str:
    """Up to the first full stop or colon that ends a statement, without emphasis marks.

    >>> first_sentence("No: content adds nothing (+.001). The rest follows.")
    'No: content adds nothing (+.001).'
    """
    return sentences(answer.replace("**", ""))[0]


def sentences(text: str) -> list[str]:
    """
    >>> sentences("No: nothing (+.001). The rest follows.")
    ['No: nothing (+.001).', 'The rest follows.']
    """
    return re.split(r"(?<=[.!?])\s+(?=[A-Z(*])", text)


# ---- two runs


def read_run(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decision table and metrics of a report's folder (or of reports/published).

    Raises
    ------
    InputError : the folder holds no finished report.
    """
    tables = []
    for name, at in (("decisions.csv", "tables/11_decisions.csv"), ("metrics.csv", "tables/metrics.csv")):
        path = next((p for p in (folder / name, folder / at) if p.is_file()), None)
        if path is None:
            finished = {p.name for p in folder.parent.glob("*") if (p / name).is_file() or (p / at).is_file()}
            runs = ", ".join(sorted(finished))
            raise InputError(f"{folder} holds no finished report ({at} is missing); reports there: {runs or 'none'}.")
        tables.append(pd.read_csv(path, keep_default_na=False, na_values={"value": [""]}))
    return tables[0], tables[1]


def compare(a: Path, b: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Answers and numbers of two runs side by side: (decisions, metrics), columns suffixed ``_a`` and ``_b``.

    ``agree``: both runs reach the same verdict. ``disjoint``: the two 95 % intervals share no point; between
    data sets a description, not a test, since their users differ.
    """
    (decisions_a, metrics_a), (decisions_b, metrics_b) = read_run(a), read_run(b)
    numbers = metrics_a.merge(metrics_b, on=["stage", *KEY], suffixes=("_a", "_b"))
    numbers["disjoint"] = (numbers["ci_low_a"] > numbers["ci_high_b"]) | (numbers["ci_low_b"] > numbers["ci_high_a"])
    return side_by_side(decisions_a, decisions_b), numbers


def side_by_side(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Two decision tables joined by question and place within it; what one run lacks stays empty.

    Not by the contrast's words: they name what each run's rule chose (a strategy, a number of days), and ``contrast_b``
    differs there.
    """
    tables = [table.assign(place=table.groupby("id").cumcount()) for table in (a, b)]
    both = tables[0].merge(tables[1], on=["id", "place"], how="outer", sort=False, suffixes=("_a", "_b"))
    both["agree"] = (both["verdict_a"] == both["verdict_b"]).where(
        both["verdict_a"].notna() & both["verdict_b"].notna()
    )
    shown = ["contrast", "value", "ci_low", "ci_high", "n", "verdict"]
    return both[["id", *(f"{column}_{run}" for run in "ab" for column in shown), "agree"]]


def in_words(compared: pd.DataFrame, name_a: str, name_b: str) -> pd.DataFrame:
    """``side_by_side`` for a reader: question, contrast (both where they differ), each run's verdict and interval."""
    shown = pd.DataFrame({"question": compared["id"]})
    first, second = compared["contrast_a"], compared["contrast_b"]
    same = (first == second) | first.isna() | second.isna()
    shown["contrast"] = first.fillna(second).where(same, first + f" ({name_b}: " + second + ")")
    for run, name in (("a", name_a), ("b", name_b)):
        columns = (compared[f"{column}_{run}"] for column in ("verdict", "value", "ci_low", "ci_high"))
        shown[name] = [
            f"{verdict} {value:+.3f} [{low:+.3f}, {high:+.3f}]" if isinstance(verdict, str) else "not asked"
            for verdict, value, low, high in zip(*columns, strict=True)
        ]
    return shown
