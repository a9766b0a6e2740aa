"""Findings: Holm over the primary contrasts, two runs side by side, short answers for every verdict, discussions."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recsys_study import findings
from recsys_study.findings import ANSWERS, Contrast
from recsys_study.stage_files import METRIC_COLUMNS
from recsys_utils.base import InputError
from recsys_utils.evaluation.significance import Estimate

PUBLISHED = Path(__file__).resolve().parents[1] / "reports" / "published"
# value and interval in margins
VERDICTS = {
    "better": (3, 2, 4), "worse": (-3, -4, -2), "tie": (0.1, -0.5, 0.7), "not worse": (0.5, -0.9, 2),
    "undecided": (0.1, -3, 3),
}  # fmt: skip


def contrast(id: str = "a-b", value: float = 0.1, half: float = 0.05, p: float = 0.01) -> Contrast:
    estimate = Estimate(value, value - half, value + half, 100, half / 1.96, value - 0.84 * half, p)
    return Contrast.from_estimate(id, "a instead of b", estimate, of="ndcg@10", primary=True)


def finding(id: str, *contrasts: Contrast) -> dict[str, Any]:
    return findings.Finding(id, "01", f"{id}?", "Yes.", "high", contrasts, {}, ()).to_json()


def test_p_values_are_corrected_together() -> None:
    answers = [finding(q, contrast(p=p)) for q, p in (("x", 0.01), ("y", 0.04), ("z", 0.03))]
    table = findings.decisions(answers)
    # sorted .01 .03 .04: 3 * .01, 2 * .03, max(2 * .03, 1 * .04)
    assert table["p_holm"].tolist() == pytest.approx([3 * 0.01, 2 * 0.03, 2 * 0.03])
    assert list(table.columns) == findings.DECISIONS == list(findings.decisions([]).columns)


def test_an_interval_must_hold_its_value_and_ids_differ() -> None:
    with pytest.raises(ValueError, match="two contrasts"):
        findings.conclude("x", "01", [contrast(), contrast()], {}, {})
    with pytest.raises(ValueError, match="interval"):
        findings.conclude("x", "01", [contrast(half=-0.05)], {}, {})


def a_run(folder: Path, value: float) -> Path:
    (folder / "tables").mkdir(parents=True)
    (folder / "findings.json").write_text("[]")
    table = findings.decisions([finding("x", contrast(value=value), contrast(f"only-{value:.0f}"))])
    table.to_csv(folder / "tables" / "11_decisions.csv", index=False)
    row = ["06_alpha_curve", "profile-size", "blend", "", "n=10", "ndcg@10", value, value - 0.05, value + 0.05, 100]
    pd.DataFrame([row], columns=METRIC_COLUMNS).to_csv(folder / "tables" / "metrics.csv", index=False)
    return folder


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    answers, numbers = findings.compare(a_run(tmp_path / "a", 1), a_run(tmp_path / "b", -1))
    assert answers["contrast"].tolist() == ["a-b", "only-1", "only--1"]
    assert answers["verdict_b"].fillna("").tolist() == ["worse", "", "better"]
    assert answers["agree"].dropna().tolist() == [False]
    assert answers["label"].notna().all()
    assert numbers[["value_a", "value_b", "disjoint"]].values.tolist() == [[1, -1, True]]
    answers, numbers = findings.compare(tmp_path / "a", tmp_path / "a")
    assert answers["agree"].all()
    assert not numbers["disjoint"].any()


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    a_run(tmp_path / "a", 0.1)
    with pytest.raises(InputError, match="reports there: a"):
        findings.compare(tmp_path / "a", tmp_path / "b")


def test_a_model_is_represented_by_the_setting_the_study_chose() -> None:
    rows = [
        ("rating-cv5", "svd", "classic", "rmse", 0.94), ("rating-cv5", "svd", "tuned", "rmse", 0.93),
        ("ranking-last20", "ease", "filter=none;relevance=liked", "ndcg@10", 0.3),
        ("ranking-last20", "ease", "relevance=liked", "ndcg@10", 0.2),
    ]  # fmt: skip
    metrics = pd.DataFrame(rows, columns=["protocol", "model", "variant", "metric", "value"]).assign(segment="all")
    assert findings.models(metrics)["value"].tolist() == [0.93, 0.2]


# ---- words

KNOWN = {
    finding["id"]: finding
    for path in sorted(PUBLISHED.rglob("findings.json"), reverse=True)
    for finding in json.loads(path.read_text(encoding="utf-8"))
}
WRITTEN = [path.name.partition(".")[0] for path in sorted(ANSWERS.glob("*.md.j2"))]


def with_verdict(contrast: dict[str, Any], verdict: str) -> dict[str, Any]:
    value, low, high = (x * contrast["margin"] for x in VERDICTS[verdict])
    return contrast | {"value": value, "ci_low": low, "ci_high": high, "verdict": verdict}


@pytest.mark.parametrize("id", [id for id in WRITTEN if KNOWN.get(id, {}).get("facts")])
def test_every_verdict_has_a_short_answer(id: str) -> None:
    known = KNOWN[id]
    cases = [known["contrasts"]]
    cases += [[with_verdict(c, verdict) for c in known["contrasts"]] for verdict in VERDICTS]
    for place, verdict in itertools.product(range(len(known["contrasts"])), VERDICTS):
        cases.append([with_verdict(c, verdict) if i == place else c for i, c in enumerate(known["contrasts"])])
    for contrasts in cases:
        context = {"c": findings.by_name(contrasts), "facts": known["facts"]}
        words = findings.render(id, context | {"data": {"dataset": "other", "noun": "item"}})
        answer = " ".join(words["answer"].split())
        assert 0 < len(answer.split()) <= 25, answer
        assert len(re.findall(r"(?<![\w@.-])[+-]?\d[\d,.]*", answer)) <= 2, answer
        assert "None" not in " ".join(words.values())


def discussion(folder: Path, relied: str, text: str = "Gain {{ c.a_b.value | signed }}.") -> Path:
    (folder / "x.md").write_text(f"---\ndata: toy\nrelies_on: {{a-b: {relied}}}\n---\n{text}\n")
    return folder


def test_a_discussion_holds_while_its_verdicts_do(tmp_path: Path) -> None:
    answers = [finding("x", contrast())]
    assert [text.text for text in findings.discussions(discussion(tmp_path, "better"), answers, "toy")] == [
        "Gain +0.100."
    ]
    assert list(findings.discussions(tmp_path, answers, "other")) == []
    (flipped,) = findings.discussions(discussion(tmp_path, "tie"), answers, "toy")
    assert (flipped.text, len(flipped.flipped)) == ("", 1)
    with pytest.raises(InputError, match="nothing"):
        list(findings.discussions(discussion(tmp_path, "better", "{{ facts.nothing }}"), answers, "toy"))


def test_a_contrast_that_turns_on_one_user_is_undecided() -> None:
    one = Estimate(0.02, 0.011, 0.03, 50, lower=0.012, least=0.002, most=0.02)
    assert Contrast.from_estimate("a", "a instead of b", one, of="ndcg@10", margin=0.01).verdict == "undecided"
