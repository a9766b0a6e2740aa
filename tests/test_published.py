"""The published results: that they are whole, agree with each other, and that the code still produces them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from recsys_study import findings
from recsys_study.findings import OPEN_QUESTIONS

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "reports" / "published"
KEY = ["protocol", "model", "variant", "segment", "metric"]
FOLDERS = pytest.mark.parametrize("folder", [PUBLISHED, PUBLISHED / "ml-latest-small"], ids=lambda folder: folder.name)


@pytest.fixture(scope="module")
def metrics() -> pd.DataFrame:
    return pd.read_csv(PUBLISHED / "metrics.csv", keep_default_na=False)


def value(metrics: pd.DataFrame, *key: str) -> float:
    rows = metrics[(metrics[KEY] == list(key)).all(axis=1)]
    assert len(rows) == 1, key
    return float(rows["value"].iloc[0])


def test_every_model_is_under_the_ranking_protocols(metrics: pd.DataFrame) -> None:
    models = {"popularity", "content", "svd", "knn", "item_knn", "ease", "blend"}
    for protocol in ("ranking-last20", "ranking-stratified", "profile-size"):
        rows = metrics[(metrics["protocol"] == protocol) & (metrics["metric"] == "ndcg@10")]
        assert models <= set(rows["model"]), protocol


def test_every_row_has_an_interval_around_its_value_and_users_behind_it(metrics: pd.DataFrame) -> None:
    assert (metrics["ci_low"] <= metrics["value"]).all()
    assert (metrics["value"] <= metrics["ci_high"]).all()
    assert (metrics["n"] > 0).all()


@FOLDERS
def test_decisions_are_those_of_the_findings(folder: Path) -> None:
    answers = json.loads((folder / "findings.json").read_text(encoding="utf-8"))
    table = pd.read_csv(folder / "decisions.csv")
    pd.testing.assert_frame_equal(table, findings.decisions(answers), check_dtype=False, atol=1e-6, rtol=0)
    assert set(OPEN_QUESTIONS) <= set(table["id"])


def test_the_discussion_relies_on_verdicts_that_hold() -> None:
    answers = json.loads((PUBLISHED / "findings.json").read_text(encoding="utf-8"))
    texts = list(findings.discussions(PUBLISHED / "discussion", answers, "ml-100k"))
    assert [flip for text in texts for flip in text.flipped] == []
    assert {text.id for text in texts} >= set(OPEN_QUESTIONS)
    assert [(text.id, len(text.text.split())) for text in texts if not 80 <= len(text.text.split()) <= 200] == []


def test_the_accuracy_table_is_of_the_published_models_and_reaches_its_bars(metrics: pd.DataFrame) -> None:
    """It comes from a run of its own, so models that the published run has too must be equal to the last digit."""
    rows = pd.read_csv(PUBLISHED / "ladder" / "ladder.csv").query("source == 'here'")
    ladder = rows.set_index(["protocol", "variant", "metric"])["value"]
    for model, rung in (("svd", "SVD"), ("knn", "KNN")):
        for metric in ("rmse", "mae"):
            assert ladder["rating-cv5", rung, metric] == value(metrics, "rating-cv5", model, "tuned", "all", metric)
    assert ladder["rating-cv5", "variational MF", "rmse"] <= 0.905
    for blend, bars in (("blend without moment", (0.872, 0.885)), ("blend", (0.868, 0.878))):
        for protocol, bar in zip(("rating-cv5", "rating-u1"), bars, strict=True):
            assert ladder[protocol, blend, "rmse"] <= bar
    for protocol in ("rating-cv5", "rating-u1"):
        far = 0.015 if protocol == "rating-cv5" else 0.02  # u1: 459 users, and none of the bars
        for level in (50, 80, 95):
            for rung in ("variational MF", "FM ids+time+implicit"):
                assert abs(ladder[protocol, rung, f"interval_coverage@{level}"] - level / 100) <= far


def test_what_is_timed_gives_the_answers_of_its_peers() -> None:
    rows = json.loads((PUBLISHED / "bench.json").read_text(encoding="utf-8"))["rows"]
    compared = [row for row in rows if row.get("same") is not None]
    assert {row["benchmark"] for row in compared} >= {"grid", "knn", "neighbours", "ingest", "evaluate"}
    assert all(row["same"] for row in compared)


def test_the_example_of_readme_runs() -> None:
    example = (ROOT / "README.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    names = {"frame": pd.DataFrame({"user_id": ["a", "a", "b"], "item_id": ["x", "y", "x"], "rating": [5, 3, 4]})}
    exec(example, names)
    assert names["scores"].shape == (2, 2)


@pytest.mark.slow
def test_the_code_still_gives_the_published_numbers() -> None:
    """Same commit, data and parameters: byte for byte (on the platform that published them)."""
    command = [sys.executable, "-m", "recsys_study.cli", "run", "params/ml-100k.yaml", "--name", "again"]
    subprocess.run(command, cwd=ROOT, check=True)
    again = ROOT / "reports" / "again"
    assert (again / "findings.json").read_bytes() == (PUBLISHED / "findings.json").read_bytes()
    assert (again / "tables" / "metrics.csv").read_bytes() == (PUBLISHED / "metrics.csv").read_bytes()
