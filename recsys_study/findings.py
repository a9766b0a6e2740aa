"""Findings are data: a question, its contrasts and facts. Words come from ``answers/<id>.md.j2``, never from code.

A template has three blocks: ``question``, ``answer`` (at most 25 words and two numbers, for any data set and verdict)
and ``caveats`` (one a line, as many as apply). It sees the contrasts by id with _ for - (``c.learned_classic.verdict``,
``.value`` ...), the facts by name (``facts.<name>``) and the data set (``data.dataset``, ``data.noun``); filters:
``signed``, ``number``, ``percent``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

import jinja2
import numpy as np

from recsys_utils.base import InputError
from recsys_utils.evaluation.significance import MARGIN, Estimate, Verdict, verdict

Confidence = Literal["high", "medium", "undecided"]
ANSWERS = Path(__file__).with_name("answers")


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
        judged = verdict(estimate, margin)
        p = None if math.isnan(estimate.p) else plain(estimate.p)
        return cls(id, label, of, unit, value, low, high, int(estimate.n), margin, p, judged, primary)


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
        return asdict(self) | {
            "contrasts": [asdict(contrast) for contrast in self.contrasts], "caveats": list(self.caveats)
        }  # fmt: skip


def conclude(
    id: str, stage: str, contrasts: Sequence[Contrast], facts: Mapping[str, Any], data: Mapping[str, Any]
) -> Finding:
    """Answer a question in the words of its template.

    Confidence is *undecided* where a primary contrast is; *medium* where one is no more than *not worse*, or a caveat
    applies; else *high*.

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
    words = render(id, {"c": {c.id.replace("-", "_"): c for c in contrasts}, "facts": facts, "data": data})
    judged = {contrast.verdict for contrast in contrasts if contrast.primary}
    caveats = tuple(words["caveats"].splitlines())
    caveats = tuple(line.strip() for line in caveats if line.strip())
    confidence: Confidence = (
        "undecided" if "undecided" in judged else "medium" if "not worse" in judged or caveats else "high"
    )
    answer = " ".join(words["answer"].split())
    return Finding(id, stage, " ".join(words["question"].split()), answer, confidence, tuple(contrasts), facts, caveats)


def render(id: str, context: Mapping[str, Any], folder: Path = ANSWERS) -> dict[str, str]:
    """The blocks of a template, filled in. InputError when it is missing or names what is not there."""
    try:
        template = _environment(folder).get_template(f"{id}.md.j2")
        full = template.new_context(dict(context))
        return {name: "".join(block(full)) for name, block in template.blocks.items()}
    except jinja2.TemplateNotFound:
        raise InputError(f"There is no {folder.name}/{id}.md.j2 to answer {id!r} with.") from None
    except jinja2.UndefinedError as error:
        raise InputError(f"{folder.name}/{id}.md.j2: {error}.") from None


@cache
def _environment(folder: Path) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), undefined=jinja2.StrictUndefined, trim_blocks=True, autoescape=False
    )
    environment.filters |= {"signed": signed, "number": number, "percent": percent}
    return environment


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
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (np.integer, int)):
        return int(value)
    if isinstance(value, (np.floating, float)):
        return None if math.isnan(value) else round(float(value), 6)
    return value
