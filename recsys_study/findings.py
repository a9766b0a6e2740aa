"""Findings are data: a question, its contrasts and facts. Words come from ``answers/<id>.md.j2``, never from code.

A template has three blocks: ``question``, ``answer`` (at most 25 words and two numbers, for any data set and verdict)
and ``caveats`` (one per line, as many as apply). It sees the contrasts by id with _ for - (``c.learned_classic.value``,
``.verdict`` ...), the facts by name (``facts.<name>``) and the data set (``data.dataset``); filters:
``signed``, ``number``, ``percent``. A discussion of the published run (:func:`discussions`) sees the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import jinja2
import numpy as np
import pandas as pd
import yaml

from recsys_utils.base import InputError
from recsys_utils.evaluation.significance import MARGIN, Estimate, Verdict, holm, p_text, verdict, without_one_user

Confidence = Literal["high", "medium", "undecided"]
ANSWERS = Path(__file__).with_name("answers")
OPEN_QUESTIONS = ("alpha-curve", "svd-or-knn", "diversity-strategy", "catalogue-filter", "retraining", "caching")
KEY = ["id", "contrast"]  # of a row of the decision table
DECISIONS = [*KEY, "label", "of", "unit", "value", "ci_low", "ci_high", "n", "margin", "p_holm", "verdict"]
MODELS = {
    "popularity": "popularity", "content": "content (TF-IDF)", "svd": "SVD", "knn": "KNN", "item_knn": "item KNN",
    "ease": "EASE", "neighbours": "user KNN (Pearson)", "latent_traits": "variational MF",
    "blend": "hybrid (before re-ranking)",
}  # fmt: skip
# (protocol, metric): what the variant says that represents a model; a variant without any setting comes first
TRACKS = {("rating-cv5", "rmse"): "tuned|nested", ("ranking-last20", "ndcg@10"): "alpha=learned|rule=mean"}


@dataclass(frozen=True)
class Contrast:
    """A difference that answers a question; more is better, so of two errors it is what is saved.

    Attributes
    ----------
    id : short name, unique within its finding, such as ``learned-classic``
    label : what is compared, in plain words, such as "learned weights instead of the classic ones"
    of : what it is a difference of: metric, protocol, sizes, order
    unit : of value, interval and margin, such as ``ndcg@10`` or ``rating points``
    n : users (or lists, or films) it rests on
    margin : the least difference that matters, in the same unit
    p : two-sided, of a difference of zero, before Holm's correction; None where no resamples were drawn
    primary : declared before the result to answer the question
    least, most : what the value can become without a single user; None where that was not measured. A verdict that
        turns on one user is *undecided*
    """

    id: str
    label: str
    of: str
    unit: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    margin: float
    p: float | None
    verdict: Verdict
    primary: bool = False
    least: float | None = None
    most: float | None = None

    @classmethod
    def from_estimate(
        cls, id: str, label: str, estimate: Estimate, *, of: str, unit: str = "ndcg@10", margin: float = MARGIN,
        primary: bool = False,
    ) -> Self:  # fmt: skip
        """
        >>> saved = Estimate(0.013, 0.011, 0.015, 943, 0.001, 0.0113, 0.0002)
        >>> Contrast.from_estimate("mf-svd", "variational MF instead of SVD", saved, of="RMSE", margin=0.005).verdict
        'better'
        """
        value, low, high = (plain(x) for x in (estimate.value, estimate.ci_low, estimate.ci_high))
        judged = settled(estimate, margin)
        p, least, most = (plain(x) for x in (estimate.p, estimate.least, estimate.most))
        return cls(id, label, of, unit, value, low, high, int(estimate.n), margin, p, judged, primary, least, most)


def settled(estimate: Estimate, margin: float = MARGIN) -> Verdict:
    """The verdict of an estimate; *undecided* where leaving out a single user turns it."""
    turns = {direction(each) for each in without_one_user(estimate, margin)}
    return verdict(estimate, margin) if len(turns) == 1 else "undecided"


@dataclass(frozen=True)
class Finding:
    """An answered question, as findings.json holds it."""

    id: str
    stage: str
    question: str
    answer: str
    confidence: Confidence
    contrasts: tuple[Contrast, ...]
    facts: Mapping[str, Any]
    caveats: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """
        >>> Finding("a", "01", "Why?", "So.", "high", (), {"x": 1}, ()).to_json()["facts"]
        {'x': 1}
        """
        return asdict(self)


def conclude(
    id: str, stage: str, contrasts: Sequence[Contrast], facts: Mapping[str, Any], data: Mapping[str, Any]
) -> Finding:
    """Answer a question in the words of its template.

    Confidence is *undecided* where a primary contrast is; *medium* where one is *slightly better*, *slightly worse* or
    *not worse*, or a caveat applies; else *high*.

    Raises
    ------
    InputError : the template is missing or names a contrast or fact that is not there.
    ValueError : two contrasts have the same id, or one has no interval that holds its value.
    """
    if len({contrast.id for contrast in contrasts}) < len(contrasts):
        raise ValueError(f"finding {id!r} has two contrasts of one id")
    if wrong := [c.id for c in contrasts if not c.ci_low - 1e-6 <= c.value <= c.ci_high + 1e-6]:
        raise ValueError(f"finding {id!r}: the interval of {wrong[0]} does not hold its value")
    facts = {name: plain(value) for name, value in facts.items()}
    words = render(id, {"c": by_name([asdict(contrast) for contrast in contrasts]), "facts": facts, "data": data})
    judged = {contrast.verdict for contrast in contrasts if contrast.primary}
    caveats = tuple(line.strip() for line in words["caveats"].splitlines() if line.strip())
    confidence: Confidence = (
        "undecided"
        if "undecided" in judged
        else "high"
        if judged <= {"better", "worse", "tie"} and not caveats
        else "medium"
    )
    answer = " ".join(words["answer"].split())
    return Finding(id, stage, " ".join(words["question"].split()), answer, confidence, tuple(contrasts), facts, caveats)


# ---- words


def by_name(contrasts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Contrasts as templates name them.

    >>> list(by_name([{"id": "learned-classic"}]))
    ['learned_classic']
    """
    return {contrast["id"].replace("-", "_"): contrast for contrast in contrasts}


def render(id: str, context: Mapping[str, Any], folder: Path = ANSWERS) -> dict[str, str]:
    """The blocks of a template, filled in. InputError when it is missing or names what is not there."""
    try:
        template = environment(folder).get_template(f"{id}.md.j2")
        full = template.new_context(dict(context))
        return {name: "".join(block(full)) for name, block in template.blocks.items()}
    except jinja2.TemplateNotFound:
        raise InputError(f"There is no {folder.name}/{id}.md.j2 to answer {id!r} with.") from None
    except jinja2.UndefinedError as error:
        raise InputError(f"{folder.name}/{id}.md.j2: {error}.") from None


@cache
def environment(folder: Path) -> jinja2.Environment:
    """Templates of a folder, with the filters for numbers; a name that is not there is an error."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,
    )  # fmt: skip
    found.filters |= {
        "direction": direction,
        "signed": signed,
        "number": number,
        "percent": percent,
        "significant": significant,
        "p": p_text,
    }
    return found


class Discussion(NamedTuple):
    """A hand-written text on a finding: filled in, or "" where it is of other data or a verdict has flipped."""

    id: str
    text: str
    flipped: list[str]


def discussions(folder: Path, findings: Sequence[Mapping[str, Any]], dataset: str) -> Iterator[Discussion]:
    """The texts of folder/<id>.md; their header names the ``data`` and the verdicts they rely on, by contrast.

    Raises
    ------
    InputError : a text names a finding, contrast or fact that is not there.
    """
    answered = {finding["id"]: finding for finding in findings}
    for path in sorted(folder.glob("*.md")):
        _, header, body = path.read_text(encoding="utf-8").split("---\n", 2)
        about = yaml.safe_load(header)
        if about["data"] != dataset:
            continue
        if path.stem not in answered:
            raise InputError(f"{path.name} discusses a finding that the run does not have.")
        finding = answered[path.stem]
        now = {contrast["id"]: contrast["verdict"] for contrast in finding["contrasts"]}
        flipped = [
            f"{path.stem}: {contrast} is {now.get(contrast, 'missing')}, not {relied}"
            for contrast, relied in about["relies_on"].items()
            if now.get(contrast) != relied
        ]
        try:
            context = {"c": by_name(finding["contrasts"]), "facts": finding["facts"]}
            text = "" if flipped else environment(folder).from_string(body).render(context)
        except jinja2.UndefinedError as error:
            raise InputError(f"{path.name}: {error}.") from None
        yield Discussion(path.stem, text.strip(), flipped)


# ---- tables of a run, and of two


def decisions(findings: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per primary contrast, with Holm's (1979) correction over all of them; without resamples p counts as 1."""
    rows = [
        {**contrast, "id": finding["id"], "contrast": contrast["id"]}
        for finding in findings
        for contrast in finding["contrasts"]
        if contrast["primary"]
    ]
    table = pd.DataFrame(rows, columns=[*DECISIONS, "p"])
    return table.assign(p_holm=holm(table["p"].astype(float).fillna(1.0)))[DECISIONS]


def models(metrics: pd.DataFrame) -> pd.DataFrame:
    """Rows of metrics.csv for models side by side: per track and model the variant that represents it."""
    chosen = []
    for (protocol, metric), said in TRACKS.items():
        track = metrics[(metrics[["protocol", "metric", "segment"]] == [protocol, metric, "all"]).all(axis=1)]
        variant = track["variant"].fillna("")
        rank = 2 * variant.isin(["", "relevance=liked"]) + variant.str.contains(said)
        best = track.assign(rank=rank).sort_values("rank", ascending=False, kind="stable").drop_duplicates("model")
        chosen.append(best.set_index("model", drop=False).reindex([*MODELS]).dropna(subset="model"))
    return pd.concat(chosen, ignore_index=True).drop(columns="rank")


def read_run(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decision table and metrics of a report's folder, or of reports/published. InputError when there is none."""
    tables = []
    for name, at in (("decisions.csv", "tables/11_decisions.csv"), ("metrics.csv", "tables/metrics.csv")):
        path = next((p for p in (folder / name, folder / at) if p.is_file()), None)
        if path is None:
            runs = ", ".join(sorted({p.parent.name for p in folder.parent.glob("*/findings.json")}))
            raise InputError(f"{folder} holds no finished report ({at} is missing); reports there: {runs or 'none'}.")
        tables.append(pd.read_csv(path, keep_default_na=False, na_values={"value": [""]}))
    return tables[0], tables[1]


def compare(a: Path, b: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Decisions and metrics of two runs side by side, columns suffixed ``_a`` and ``_b``.

    ``disjoint``: the two 95 % intervals share no point; between data sets a description, not a test.
    """
    (decisions_a, metrics_a), (decisions_b, metrics_b) = read_run(a), read_run(b)
    key = ["stage", "protocol", "model", "variant", "segment", "metric"]
    numbers = metrics_a.merge(metrics_b, on=key, suffixes=("_a", "_b"))
    numbers["disjoint"] = (numbers["ci_low_a"] > numbers["ci_high_b"]) | (numbers["ci_low_b"] > numbers["ci_high_a"])
    return side_by_side(decisions_a, decisions_b), numbers


def side_by_side(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Two decision tables joined by question and contrast; what one run lacks is empty. ``agree``: the same verdict."""
    shown = [*KEY, "label", "value", "ci_low", "ci_high", "n", "verdict"]
    both = pd.concat([a, b])[KEY].drop_duplicates()
    both = both.merge(a[shown], how="left").merge(b[shown], on=KEY, how="left", suffixes=("_a", "_b"))
    shared = both["verdict_a"].notna() & both["verdict_b"].notna()
    both["agree"] = (both["verdict_a"] == both["verdict_b"]).where(shared)
    return both.assign(label=both["label_a"].fillna(both["label_b"])).drop(columns=["label_a", "label_b"])


def direction(verdict: str) -> str:
    """A verdict without its size, for answers that need no more.

    >>> direction("slightly better"), direction("not worse")
    ('better', 'not worse')
    """
    return verdict.removeprefix("slightly ")


# ---- numbers as text


def signed(value: float, digits: int = 3) -> str:
    """
    >>> signed(0.0132), signed(-0.5, 1)
    ('+0.013', '-0.5')
    """
    return f"{value:+.{digits}f}"


def number(value: float, digits: int = 3) -> str:
    """
    >>> number(0.9104), number(1682), number(-0.0001)
    ('0.910', '1,682', '0.000')
    """
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:z,.{digits}f}"


def significant(value: Any, digits: int = 3) -> str:
    """
    >>> significant(0.00012345), significant(4.2), significant(12345.6), significant(float("nan")), significant(0.0)
    ('0.000123', '4.2', '12,346', '', '0')
    """
    if value is None or math.isnan(value):
        return ""
    places = digits - 1 - math.floor(math.log10(abs(value))) if value else 0
    text = f"{value:,.{max(places, 0)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def percent(value: float, digits: int = 0) -> str:
    """
    >>> percent(0.061), percent(0.0149, 1)
    ('6 %', '1.5 %')
    """
    return f"{100 * value:.{digits}f} %"


def plain(value: Any) -> Any:
    """numpy scalars as JSON numbers of six decimals, containers likewise; NaN is None.

    >>> plain({"a": np.float64(1 / 3), "b": [np.int64(2)]})
    {'a': 0.333333, 'b': [2]}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [plain(inner) for inner in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 6)
    return value
