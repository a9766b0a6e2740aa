"""The decision table: Holm over the declared contrasts, when a verdict would turn, two runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys_study import decisions
from recsys_study.stage_files import METRIC_COLUMNS
from recsys_utils.base import InputError
from recsys_utils.evaluation.significance import Bootstrap, Estimate, verdict


def contrast(question: str, value: float, half: float, p: float) -> dict[str, Any]:
    se = half / 1.96
    return decisions.primary_contrast(
        question, "a - b", Estimate(value, value - half, value + half, 100, se, value - 1.645 * se, p)
    )


def finding(question: str) -> dict[str, Any]:
    return {"id": question, "question": f"{question}?", "answer": "Yes (+.1). And more.", "confidence": "high"}


def test_p_values_are_corrected_together() -> None:
    rows = [contrast("x", 0.1, 0.05, 0.01), contrast("y", 0.1, 0.05, 0.04), contrast("z", 0.1, 0.05, 0.03)]
    table = decisions.decision_table([finding(q) for q in "xyz"], rows)
    # sorted .01 .03 .04: 3 * .01, 2 * .03, max(2 * .03, 1 * .04)
    assert table["p_holm"].tolist() == pytest.approx([3 * 0.01, 2 * 0.03, 2 * 0.03])
    lost = table["what_would_change_it"].str.endswith("does not survive the correction for several questions")
    assert lost.tolist() == [False, True, True]
    assert table["answer"].unique().tolist() == ["Yes (+.1)."]


def test_a_contrast_nobody_answers_is_an_error() -> None:
    with pytest.raises(ValueError, match="y"):
        decisions.decision_table([finding("x")], [contrast("x", 0.1, 0.05, 0.01), contrast("y", 0.1, 0.05, 0.04)])


def test_without_contrasts_the_table_keeps_its_columns() -> None:
    assert decisions.decision_table([finding("x")], []).columns.tolist() == decisions.COLUMNS


@pytest.mark.parametrize(
    ("value", "half", "expected"),
    [
        (0.1, 0.05, "fewer than 25 users, or a margin above 0.15"),  # (.05 / .1)^2 of 100; .1 + .05 is the far end
        (0.2, 0.02, "fewer than 20 users, or a margin above 0.22"),  # (.02 / .2)^2 of 100 would be 1
        (0.002, 0.004, "a margin below 0.006"),
        (0.004, 0.012, "about 4.0 times as many users, if the difference stays what it is"),  # (.012 / (.01 - .004))^2
        (0.02, 0.04, "about 4.0 times as many users, if the difference stays what it is"),  # (.04 / .02)^2
    ],
)
def test_what_would_change(value: float, half: float, expected: str) -> None:
    assert decisions.what_would_change(contrast("x", value, half, 0.01), 0.01) == expected


def test_at_the_margin_named_the_verdict_turns() -> None:
    for value, half in ((0.1, 0.05), (-0.2, 0.02)):
        margin = abs(value) + half
        found = [verdict(Estimate(value, value - half, value + half, 100), m) for m in (0.99 * margin, 1.01 * margin)]
        assert found == ["better" if value > 0 else "worse", "tie"]


def test_the_share_of_users_at_which_a_verdict_turns_is_right() -> None:
    """Users drawn from the same population: at the share named, about half the studies find no difference any more."""
    rng = np.random.default_rng(5)
    half = 1.96 * 1.0 / np.sqrt(400)
    row = contrast("x", 0.25, half, 0.001)
    users = round(400 * (half / 0.25) ** 2)
    found = [
        verdict(Bootstrap(users, seed=s, resamples=300).mean(rng.normal(0.25, 1.0, users))) == "better"
        for s in range(200)
    ]
    assert row["verdict"] == "better"
    assert 0.38 < np.mean(found) < 0.62  # 4 standard errors of a coin thrown 200 times: .14


def a_run(folder: Path, value: float) -> Path:
    (folder / "tables").mkdir(parents=True)
    table = decisions.decision_table([finding("x")], [contrast("x", value, 0.05, 0.01)])
    table.to_csv(folder / "tables" / "11_decisions.csv", index=False)
    row = ["06_alpha_curve", "profile-size", "blend", "", "n=10", "ndcg@10", value, value - 0.05, value + 0.05, 100]
    pd.DataFrame([row], columns=METRIC_COLUMNS).to_csv(folder / "tables" / "metrics.csv", index=False)
    return folder


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    answers, numbers = decisions.compare(a_run(tmp_path / "a", 0.1), a_run(tmp_path / "b", -0.1))
    assert answers[["verdict_a", "verdict_b", "agree"]].values.tolist() == [["better", "worse", False]]
    assert numbers[["value_a", "value_b", "disjoint"]].values.tolist() == [[0.1, -0.1, True]]  # .05 > -.05
    answers, numbers = decisions.compare(tmp_path / "a", tmp_path / "a")
    assert answers["agree"].all()
    assert not numbers["disjoint"].any()


def test_a_run_that_is_not_there_is_named(tmp_path: Path) -> None:
    a_run(tmp_path / "a", 0.1)
    with pytest.raises(InputError, match="reports there: a"):
        decisions.compare(tmp_path / "a", tmp_path / "b")
