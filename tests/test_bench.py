"""The benchmarks at sizes of a moment: their answers agree, their rows are whole; how fast is not a test's business."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import evaluate, generated, grid, ingest, knn, latent_traits, measure, neighbours
from recsys_study import bench_tables as speed
from recsys_study import report
from tests import bench_work
from tests.test_cli import recsys

MEASURED = {"seconds", "cpu_seconds", "anonymous_mb", "mapped_mb", "start_mb"}


def at_once(contender: measure.Contender) -> tuple[dict[str, float], Any]:
    """``measure.measured`` without a process of its own, where answers are all that is asked."""
    steps = contender.work(*contender.arguments)
    next(steps)
    with pytest.raises(StopIteration) as stop:
        next(steps)
    return dict.fromkeys(MEASURED, 1.0), stop.value.value


def compared(wrong: float) -> list[dict[str, Any]]:
    return measure.compare(
        {"benchmark": "b", "task": "t", "size": 5, "unit": "numbers"},
        [
            measure.Contender("ours", bench_work.ours, (5,)),
            measure.Contender(
                "theirs", bench_work.theirs, (5, wrong), share=0.5, check=measure.closest("numbers", 1e-6)
            ),
            measure.Contender("absent", bench_work.ours, (5,), needs="no_such_package"),
        ],
    )


class TestHarness:
    def test_rows_hold_costs_ratios_agreement_and_who_is_absent(self) -> None:
        ours, theirs, absent = compared(1e-9)
        assert ours.keys() >= MEASURED
        assert not ours["peer"]
        assert theirs["peer"]
        assert theirs["ratio"] == pytest.approx(theirs["seconds"] / ours["seconds"], rel=1e-2)
        assert theirs["same"] is True
        assert "50.0% of the task" in theirs["note"]
        assert absent["note"] == "not installed: pip install no_such_package"
        assert not absent.keys() & MEASURED

    def test_another_answer_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measure, "measured", at_once)
        assert compared(1e-3)[1]["same"] is False

    def test_memory_of_the_call_is_seen_from_outside(self) -> None:
        found, answer = measure.measured(measure.Contender("m", bench_work.holding_memory, (200,)))
        assert answer == 25e6
        assert found["anonymous_mb"] > found["start_mb"] + 190
        assert found["mapped_mb"] >= 0

    def test_a_process_that_joblib_gave_workers_ends_with_its_answer(self) -> None:
        """Idle workers stay for five minutes, and a process waits for its children."""
        contender = measure.Contender("p", bench_work.by_workers, (3,), jobs=2)
        found = ThreadPoolExecutor(1).submit(measure.measured, contender)
        assert found.result(timeout=120)[1] == [0, 1, 4]

    def test_growth_is_the_slope_of_logs(self) -> None:
        """Seconds 3 n^2 at n = 1, 2, 4; two sizes are too few for a fit."""
        rows = [
            {"benchmark": "b", "task": t, "who": "w", "size": n, "cpu_seconds": 3.0 * n**2}
            for t, sizes in (("three", (1, 2, 4)), ("two", (1, 2)))
            for n in sizes
        ]
        (found,) = measure.growth(rows)
        assert (found["task"], found["exponent"], found["sizes"]) == ("three", 2.0, 3)

    def test_nan_agrees_with_nan_only(self) -> None:
        check = measure.closest("x", 1e-6)
        assert check(np.array([np.nan, 1]), np.array([np.nan, 1]))[0]
        assert not check(np.array([np.nan, 1]), np.array([1.0, 1]))[0]

    def test_the_machine_is_described_without_a_path(self) -> None:
        said = json.dumps(measure.machine())
        assert {"cpu", "cores", "python", "packages"} <= json.loads(said).keys()
        assert not re.search(r"/\w+/", said)


def assert_whole(rows: list[dict[str, Any]], *, judged: int) -> None:
    assert all(row.keys() >= {"benchmark", "task", "size", "unit", "who", "peer"} for row in rows)
    assert all(row.keys() >= MEASURED or row["note"].startswith("not installed") for row in rows)
    assert [row for row in rows if row.get("same") is False] == []
    assert sum("same" in row for row in rows) == judged


class TestAnswersAgree:
    @pytest.fixture(autouse=True)
    def _without_processes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measure, "measured", at_once)

    def test_grid_with_surprise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        few = {"n_factors": [5], "n_epochs": [3, 6], "lr": [0.01], "reg": [0.02, 0.1]}
        monkeypatch.setattr(grid, "GRID", few)
        monkeypatch.setattr(grid, "ratings", lambda share: generated.movielens_like(60, 200, 1800))
        rows = grid.run(shares=[1.0], folds=2)
        assert_whole(rows, judged=4)
        assert [row["task"].split(", ", 1)[1] for row in rows[::2]] == [
            f"{order} rows, {jobs}" for jobs in ("1 job", "2 jobs") for order in ("sorted", "shuffled")
        ]

    def test_knn_with_surprise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        few = {"kind": ["KNNBaseline"], "similarity": ["msd"], "user_based": [False], "k": [20, 40], "min_support": [3]}
        monkeypatch.setattr(knn, "GRID", few)
        monkeypatch.setattr(knn, "ratings", lambda share: generated.movielens_like(60, 200, 1800))
        assert_whole(knn.run(shares=[1.0], folds=2), judged=1)

    def test_neighbours_with_scipy_and_corrcoef(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(neighbours, "ML_25M", (600, 400, 24_000))
        rows = neighbours.run(shares=[1.0])
        assert_whole(rows, judged=2)
        assert {row["task"] for row in rows} == {
            "prepare from parquet", "open", "predict all films from 35 ratings",
        }  # fmt: skip

    def test_ingest_with_pandas(self) -> None:
        assert_whole(ingest.run(ratings=[3000]), judged=1)

    def test_ranking_metrics_with_a_loop_and_scikit_learn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(evaluate, "SHAPE", (60, 300))
        rows = evaluate.run(users=[60])
        assert_whole(rows, judged=2 + (len(rows) == 4 and "same" in rows[3]))

    def test_latent_traits_find_noise(self) -> None:
        rows = latent_traits.run(ratings=[3000])
        assert_whole(rows, judged=0)
        assert "planted 0.8" in rows[0]["compared"]


def test_more_ratings_than_films_allow_are_refused() -> None:
    with pytest.raises(ValueError, match="of 40 films"):
        generated.generate(60, 40, 2000)


def test_generated_ratings_have_the_shape_asked_for() -> None:
    user, item, rating = generated.generate(100, 300, 3000)
    assert len(user) == 3000
    assert np.bincount(user).min() >= 20
    assert item.max() < 300
    assert len(np.unique(user.astype(np.int64) * 300 + item)) == 3000
    assert set(np.unique(rating)) <= {n / 2 for n in range(1, 11)}


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    """What three sizes of one task and one of another would give; no clock is asked."""
    rows = [
        {"benchmark": "grid", "task": "SVD", "size": n, "unit": "ratings", "who": who, "peer": peer,
         "seconds": n * 0.01, "cpu_seconds": n * 0.01, "anonymous_mb": 100.0, "mapped_mb": 50.0, "start_mb": 90.0}
        | ({"ratio": 20.0, "cpu_ratio": 21.0, "same": True, "compared": f"largest difference at {n}"} if peer else {})
        for n in (10, 20, 40) for who, peer in (("ours", False), ("theirs", True))
    ]  # fmt: skip
    absent = {"who": "implicit", "peer": True, "note": "not installed: pip install implicit"}
    rows.append({"benchmark": "evaluate", "task": "nine", "size": 7, "unit": "users"} | absent)
    machine = {"cpu": "C", "cores": 2, "memory_gb": 8, "system": "Linux", "python": "3.11", "packages": {"numpy": "2"}}
    found = {"machine": machine | {"load_at_start": 0.5}, "full": False, "rows": rows, "growth": measure.growth(rows)}
    about = measure.about(found["machine"], full=False)
    return found | {"about": about, "figure": "Seconds.", "remarks": measure.remarks(found)}


class TestShown:
    def test_remarks_name_what_was_compared_at_the_largest_size(self, bench: dict[str, Any]) -> None:
        assert bench["remarks"] == {
            "grid": [
                "theirs (SVD): largest difference at 40",
                "ours (SVD): CPU seconds grow as size^1.00",
                "theirs (SVD): CPU seconds grow as size^1.00",
            ],
            "evaluate": ["implicit (nine): not installed: pip install implicit"],
        }

    def test_tables_hold_a_row_a_contender(self, bench: dict[str, Any]) -> None:
        (name, table), (_, other) = speed.tables(bench)
        assert name == "grid"
        assert table["same"].tolist() == ["", "yes"] * 3
        assert table["size"].tolist()[-1] == "40 ratings"
        assert table["x"].tolist()[1] == "20"
        assert other["seconds"].tolist() == ["not installed"]

    def test_the_page_shows_table_and_figure(self, bench: dict[str, Any], tmp_path: Any) -> None:
        measure.save(bench, tmp_path / "bench.json")
        assert (tmp_path / "bench.png").stat().st_size > 10_000
        page = report.speed_page(tmp_path / "bench.json")
        assert page.startswith("# Speed and memory")
        assert "| 40 ratings | theirs | 0.4 | 0.4 | 100 | 50 | 20 | 21 | yes |" in page
        assert "bench.png" in page
        fastest = "| SVD grid search | SVD, 40 ratings | ours | 0.4 | theirs | 0.4 | yes |"
        assert page.index(fastest) < page.index("## SVD grid search")
        assert "pip install implicit" in page

    def test_an_answer_that_differs_stands_out(self, bench: dict[str, Any]) -> None:
        rows = [bench["rows"][0], bench["rows"][1] | {"same": False}]
        _, table = next(speed.tables(bench | {"rows": rows, "growth": []}))
        assert table["same"].tolist() == ["", "NO"]


def test_an_unknown_name_is_one_paragraph_and_status_2() -> None:
    done = recsys("bench", "grit")
    assert done.returncode == 2
    assert "There is no benchmark 'grit'; there are grid, knn" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_the_command_prints_and_writes(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from recsys_study import cli

    about, one = {"benchmark": "ingest", "task": "t", "size": 5, "unit": "ratings"}, bench_work.ours
    monkeypatch.setattr(ingest, "run", lambda full: measure.compare(about, [measure.Contender("ours", one, (5,))]))
    cli.bench(["ingest"], json_=tmp_path / "b.json", full=False)
    assert "ours" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert row.keys() >= MEASURED
    assert not (tmp_path / "b.png").exists(), "one size has no growth"
    assert pd.notna(row["seconds"])
