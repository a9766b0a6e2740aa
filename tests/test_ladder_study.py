"""The accuracy table: its blend knows nothing of what is reported, its numbers follow from the predictions."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from blind import check_blind

from recsys_study import accuracy_table, ingest
from recsys_study.accuracy_table import BLEND, Step, predict_all, single_models, summarise_models, u1_steps
from recsys_study.bayesian_fm import BayesianFM
from recsys_study.cli import plan_from
from recsys_utils.base import InputError, Scale
from recsys_utils.data.fetch import fetch
from recsys_utils.data.interactions import Interactions
from recsys_utils.data.synthetic import Size, generate
from recsys_utils.evaluation.protocols import LeakError, make_splits
from recsys_utils.evaluation.significance import Bootstrap
from recsys_utils.models.surprise_models import KNN, SVD
from recsys_utils.models.variational_mf import VariationalMF

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "KNN": KNN(),
    "SVD": SVD(n_factors=2, n_epochs=10, lr=0.02),
    "MF": VariationalMF(n_factors=2, sweeps=4),
}


@pytest.fixture(scope="module")
def data() -> Interactions:
    return Interactions.from_frame(generate(Size(users=60, items=50, ratings=1300)).ratings, scale=Scale(1, 5))


@pytest.fixture(scope="module")
def test(data) -> np.ndarray:
    return np.arange(len(data)) % 5 == 0


def test_a_step_that_asks_what_it_was_fitted_on_is_refused(data, test) -> None:
    with pytest.raises(LeakError, match="in the training part"):
        Step(data, data.where(test), MODELS)


def test_nobody_sees_the_asked_ratings(data, test, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(
        accuracy_table, "_predicted", lambda model, train, targets: seen.append(targets) or honest(targets)
    )

    def honest(targets: Interactions) -> tuple[np.ndarray, np.ndarray, float]:
        return np.linspace(1, 5, len(targets)), np.ones(len(targets)), 0.0

    predict_all([Step(data.where(~test), data.where(test), MODELS)], seed=1)
    assert len(seen) == 2 * len(MODELS)
    assert all(np.isnan(targets.rating).all() for targets in seen)


def test_a_stack_fitted_on_the_reported_fold_is_noticed(data, test, monkeypatch) -> None:
    """Canary: what the blend predicts must not change with the targets ratings; weights fitted on those do."""
    targets = data.where(test)
    pairs = targets.where(np.arange(len(targets)) % 3 == 0)

    def run(data: Interactions, test: np.ndarray) -> np.ndarray:
        train = data.where(~test)
        table, _ = predict_all([Step(train, pairs, MODELS)], seed=1)
        return table[BLEND].to_numpy()

    def leaking(data: Interactions, test: np.ndarray) -> np.ndarray:
        held = data.where(test)
        monkeypatch.setattr(accuracy_table.grid_kernels, "shuffled_folds", lambda *_: [(data.where(~test), held)])
        return run(data, test)

    check_blind(run, data, test)
    with pytest.raises(LeakError, match="nothing but test ratings"):
        check_blind(leaking, data, test)


def test_jobs_change_nothing(data, test) -> None:
    step = Step(data.where(~test), data.where(test), MODELS)
    (one, _), (two, _) = (predict_all([step], seed=1, jobs=jobs) for jobs in (1, 2))
    pd.testing.assert_frame_equal(one, two)


def test_the_blend_weighs_a_perfect_model_by_one(data, test, monkeypatch) -> None:
    truth = dict(zip(zip(data.user, data.item, strict=True), data.rating, strict=True))
    noise = np.random.default_rng(0)

    def predicted(model, train, targets):
        exact = np.array([truth[pair] for pair in zip(targets.user, targets.item, strict=True)], float)
        off = 0 if model.name == "svd" else noise.normal(0, 1, len(targets))
        return exact + off, np.full(len(targets), np.nan), 0.0

    monkeypatch.setattr(accuracy_table, "_predicted", predicted)
    table, weights = predict_all([Step(data.where(~test), data.where(test), MODELS)], seed=1)
    assert weights.loc[0, "SVD"] == pytest.approx(1, abs=0.01)
    assert weights.loc[0, ["KNN", "MF"]].abs().max() < 0.01
    np.testing.assert_allclose(table[BLEND], table["rating"], atol=0.05)


def test_heights_by_hand() -> None:
    """Two runs of the same two ratings: RMSE over both runs, intervals hold half of them, users counted once."""
    frame = pd.DataFrame({"user_id": ["a", "b", "b"], "item_id": ["x", "x", "y"], "rating": [1.0, 5.0, 3.0]})
    data = Interactions.from_frame(frame, scale=Scale(1, 5))
    step = Step(data.where(data.item == 1), data.where(data.item == 0), {"MF": VariationalMF()})
    table = pd.DataFrame({"step": [0, 0, 1, 1], "user": [0, 1, 0, 1], "rating": [1.0, 5.0, 1.0, 5.0]})
    table = table.assign(**{"MF": [0.0, 4.0, 3.0, 4.0], "MF, deviation": [1.5, 1.0, 1.0, 1.6], BLEND: table["rating"]})
    rows, falls, by_step = summarise_models(table, [step, step], Bootstrap(2, seed=1, resamples=50), "rating-u1")
    value = rows.set_index(["variant", "metric"])["value"]
    assert value["MF", "rmse"] == pytest.approx(np.sqrt((0 + 1 + 4 + 1) / 4))  # the first 0 is clipped to 1
    assert value["MF", "mae"] == pytest.approx((0 + 1 + 2 + 1) / 4)
    assert value["MF", "interval_coverage@50"] == 2 / 4  # |z| = .67 (not clipped), 1, 2, .63; half lie within .674
    assert value[BLEND, "rmse"] == 0
    assert set(rows["n"]) == {2}
    assert falls["MF", BLEND].value == pytest.approx(np.sqrt(6 / 4))
    np.testing.assert_allclose(by_step["MF"], [np.sqrt(1 / 2), np.sqrt(5 / 2)])


def test_without_time_stamps_the_machines_have_no_temporal_features() -> None:
    assert list(single_models(SVD(), KNN(), has_time=False, seed=1))[3:] == [
        "FM ids",
        "FM ids+implicit",
        "FM ids+implicit+ordinal",
    ]
    models = single_models(SVD(), KNN(), has_time=True, seed=1)
    assert {*accuracy_table.KNOWN, accuracy_table.MOMENT} < set(models)


def test_only_the_last_model_uses_same_minute_ratings() -> None:
    machines = {
        n: m for n, m in single_models(SVD(), KNN(), has_time=True, seed=1).items() if isinstance(m, BayesianFM)
    }
    assert [n for n, m in machines.items() if "moment" in m.features] == [accuracy_table.MOMENT] == list(machines)[-1:]


def test_the_mirror_has_no_u1(data) -> None:
    splits = make_splits(data, seed=1)[0]
    with pytest.raises(InputError, match="u1"):
        u1_steps(data, splits, [SVD()], [KNN()], folds=(2, 1), seeds=1, seed=1, jobs=1)


def test_settings_for_u1_are_chosen_inside_its_training_part(data, test, monkeypatch) -> None:
    """Canary: turn the ratings of u1.test round; the chosen settings and every training part must stay."""
    monkeypatch.setattr(accuracy_table, "U1_SIZES", (len(data), int(test.sum())))
    turned = replace(data, rating=np.where(test, 6 - data.rating, data.rating).astype(np.float32))
    svd = [SVD(n_factors=2, n_epochs=n, lr=0.02) for n in (1, 5, 30)]
    knn = [KNN(k=k) for k in (2, 40)]
    splits = pd.DataFrame({"u1_test": test})
    kinds = {"folds": (3, 1), "seeds": 2, "seed": 1, "jobs": 1}
    one, other = (u1_steps(d, splits, svd, knn, **kinds) for d in (data, turned))
    assert [step.models for step in one] == [step.models for step in other]
    assert [step.train.rating.sum() for step in one] == [step.train.rating.sum() for step in other]
    assert one[0].models["SVD"].seed != one[1].models["SVD"].seed


def test_the_official_split_is_read_from_the_official_zip(shared_data) -> None:
    fetched = fetch("ml-100k", archive=shared_data / "ml-100k.zip", raw=ROOT / "data" / "raw")
    ratings = ingest.build(fetched).ratings
    part = fetched.u1_test(ratings)
    assert (len(part), part.sum()) == accuracy_table.U1_SIZES
    assert fetch("smoke", raw=ROOT).u1_test(ratings) is None
    assert ratings.loc[part, "user_id"].nunique() == 459  # the first 462 users, three of whom have no test rating


@pytest.mark.skipif(importlib.util.find_spec("myfm") is None, reason="the extra accuracy is not installed")
def test_the_notebook_makes_the_table_on_smoke(smoke_run, tmp_path) -> None:
    import papermill

    plan = plan_from(ROOT / "params" / "smoke.yaml", [], jobs=1)
    given = plan.values("03_cf_grid_search", tmp_path)
    papermill.execute_notebook(
        ROOT / "notebooks" / "appendix_accuracy_ladder.ipynb", tmp_path / "notebook.ipynb",
        parameters={name: given[name] for name in ("workspace", "output", "seed", "jobs")},
        cwd=ROOT / "notebooks", progress_bar=False,
    )  # fmt: skip
    rows = pd.read_csv(tmp_path / "metrics.csv").query("model == 'ladder'")
    assert set(rows["metric"]) == {"rmse", "mae"}
    assert "accuracy-ladder" in (tmp_path / "findings.json").read_text(encoding="utf-8")
