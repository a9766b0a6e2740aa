"""The alpha study: tuned curves by hand, test values equal to ranking the blend itself, the same whatever jobs is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from recsys_utils.alpha_study import (
    NDCG,
    AlphaStudy,
    Parts,
    curve_value,
    rank_warm,
    study_alpha,
    surface_of,
    tune_curves,
    tune_warm,
)
from recsys_utils.blend import CURVES, Blend
from recsys_utils.collaborative import EASE, SVD, ItemKNN, Popularity
from recsys_utils.content import ContentModel
from recsys_utils.interactions import Interactions
from recsys_utils.interfaces import Scale
from recsys_utils.protocols import fold_users, make_splits, profile_size_cases, rank_and_measure
from recsys_utils.significance import Bootstrap

SIZES = [0, 2, 5, 8]


@pytest.fixture(scope="module")
def world() -> tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """60 users, half for War and half for Love films; splits; films; users."""
    rng = np.random.default_rng(3)
    films = pd.DataFrame(
        {"item_id": [f"i{i}" for i in range(40)], "genres": [["War"] if i % 2 else ["Love"] for i in range(40)]}
    )
    rows = [
        (f"u{u}", f"i{i}", int(rng.integers(3, 6) if i % 2 == u % 2 else rng.integers(1, 4)), int(rng.integers(1000)))
        for u in range(60)
        for i in rng.choice(40, 24, replace=False)
    ]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating", "timestamp"])
    data = Interactions.from_frame(frame, scale=Scale(1, 5), items=films["item_id"])
    splits, users, _ = make_splits(data, seed=1, random_orders=2)
    return data, splits, films, users


@pytest.fixture(scope="module")
def study(world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame]) -> AlphaStudy:
    return run(world, jobs=1)


def run(world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame], jobs: int) -> AlphaStudy:
    data, splits, films, users = world
    settings = {"ease": [EASE(reg=20.0)], "item_knn": [ItemKNN(k=1), ItemKNN(k=20)]}
    content = dict.fromkeys(users["fold"], ContentModel(films))
    return study_alpha(
        data, splits, users, content=content, popularity=Popularity(), settings=settings, sizes=SIZES,
        alpha_step=0.25, jobs=jobs,
    )  # fmt: skip


def test_learned_takes_the_best_weight_at_each_size_and_the_lower_of_two() -> None:
    surface = np.array([[0.1, 0.3, 0.3], [0.5, 0.2, 0.1], [0.0, 0.0, 0.9]])
    tuned = tune_curves(surface, np.array([1, 5, 20]), np.array([0.0, 0.5, 1.0]))
    assert tuned["learned"].alphas == (0.5, 0.0, 1.0)
    assert tuned["classic"] == CURVES["classic"]
    assert set(tuned) == {"classic", "step", "linear", "sigmoid", "learned"}


def test_curve_value_weighs_all_sizes_but_the_empty_profile_equally() -> None:
    surface = np.array([[9.0, 9.0], [0.1, 0.2], [0.3, 0.5]])
    # step: 0 at n = 1, .7 at n = 20, whose nearest grid alpha is 1; n = 0 does not count
    assert curve_value(CURVES["step"], surface, np.array([0, 1, 20]), np.array([0.0, 1.0])) == (0.1 + 0.5) / 2


def test_no_like_means_popularity_at_every_weight() -> None:
    films = pd.DataFrame({"item_id": list("abcd"), "genres": [["War"], ["War"], ["Love"], ["Love"]]})
    frame = pd.DataFrame({"user_id": ["x", "y", "z"], "item_id": ["a", "c", "c"], "rating": [5, 5, 5]})
    data = Interactions.from_frame(frame, scale=Scale(1, 5), items=films["item_id"])
    cf = {"ease": EASE(reg=1.0).fit(data)}
    parts = Parts(ContentModel(films).fit(data), Popularity().fit(data), cf)
    profiles = csr_matrix(np.array([[2, 0, 0, 0], [5, 0, 0, 0]], np.float32))
    relevant = csr_matrix(np.array([[0, 0, 1, 0], [0, 1, 0, 0]], np.float32))
    found = parts.surfaces(profiles, relevant, {"ease": np.array([0.0, 1.0])})
    assert found["ease"][0].tolist() == [1.0, 1.0]  # c is the most popular film
    assert found["ease"][1, 0] == 1.0  # by content the other War film
    assert found["popularity"][1, 0] < 1.0


@pytest.mark.parametrize("curve", ["classic", "step"])
def test_test_values_equal_ranking_the_blend(
    world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame], study: AlphaStudy, curve: str
) -> None:
    data, splits, films, users = world
    fold = 0
    train = data.of_users(fold_users(users, fold).fit)
    blend = Blend(ContentModel(films), EASE(reg=20.0), CURVES[curve], Popularity()).fit(train)
    for case in profile_size_cases(data, splits, users, fold, order="time", sizes=SIZES):
        expected = rank_and_measure(blend, case).set_index("user_id")[NDCG].dropna()
        rows = study.users.query("order == 'time' and model == 'blend' and cf == 'ease' and curve == @curve")
        got = rows[rows["n"] == case.n].set_index("user_id")[NDCG].reindex(expected.index)
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_a_model_alone_is_the_blend_at_one_and_orders_are_averaged(
    world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame], study: AlphaStudy
) -> None:
    data, splits, _, users = world
    model = EASE(reg=20.0).fit(data.of_users(fold_users(users, 1).fit))
    per_order = []
    for order in ("random_0", "random_1"):
        (case,) = profile_size_cases(data, splits, users, 1, order=order, sizes=[8])
        has_like = (case.profiles.toarray() >= 4).any(axis=1)
        per_order.append(rank_and_measure(model, case).set_index("user_id")[NDCG][has_like])
    expected = (per_order[0] + per_order[1]).dropna() / 2
    rows = study.users.query("order == 'random' and model == 'ease' and n == 8").set_index("user_id")[NDCG]
    np.testing.assert_allclose(rows.reindex(expected.index), expected, atol=1e-12)


def test_every_user_is_tested_once_and_sums_agree(study: AlphaStudy) -> None:
    assert not study.users.duplicated(["user_id", "order", "n", "model", "cf", "curve"]).any()
    surface, sizes, alphas = surface_of(study.test, "random", "ease")
    assert alphas.tolist() == [0, 0.25, 0.5, 0.75, 1]
    content = study.users.query("order == 'random' and model == 'content' and n >= 1").groupby("n")[NDCG].mean()
    np.testing.assert_allclose(surface[:, 0], content.reindex(sizes))


def test_settings_and_pairs_come_from_validation(study: AlphaStudy) -> None:
    chosen = study.settings[study.settings["chosen"]]
    best = study.settings.groupby(["fold", "cf"])[NDCG].max()
    np.testing.assert_array_equal(chosen.set_index(["fold", "cf"])[NDCG].sort_index(), best)
    values = [value for _, _, value in study.pairs()]
    assert len(values) == 2 * 5
    assert values == sorted(values, reverse=True)


def test_metric_rows_average_sizes_with_equal_weight(study: AlphaStudy) -> None:
    ids = np.array(sorted(study.users["user_id"].unique()), dtype=object)
    rows = (
        study.metric_rows(ids, Bootstrap(len(ids), seed=1, resamples=200))
        .set_index(["model", "variant", "segment"])
        .sort_index()
    )
    series = rows.loc["blend", "order=random;alpha=learned;cf=ease"]
    assert series.loc["n=1-30", "value"] == pytest.approx(series.loc[["n=2", "n=5", "n=8"], "value"].mean())
    assert rows["n"].min() > 0
    assert not rows.index.duplicated().any()


def test_results_do_not_depend_on_jobs(
    world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame], study: AlphaStudy
) -> None:
    parallel = run(world, jobs=2)
    pd.testing.assert_frame_equal(parallel.users, study.users)
    pd.testing.assert_frame_equal(parallel.validation, study.validation)


def test_warm_weights_are_tuned_per_range_of_sizes() -> None:
    profiles = csr_matrix(np.repeat([[1.0] * 10 + [0] * 20, [1.0] * 30], 2, axis=0))  # 10 and 30 ratings
    good = np.array([[1.0, 0.0], [0.8, 0.0], [0.0, 0.9], [0.0, 1.0]])
    cf, curve = tune_warm({"popularity": good + 9, "bad": good / 2, "good": good}, profiles, np.array([0.0, 1.0]))
    assert cf == "good"
    assert curve([5, 19, 20, 49]).tolist() == [0, 0, 1, 1]


def test_warm_rows_name_what_they_blend(
    world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame],
) -> None:
    data, splits, films, _ = world
    settings = {"svd": [SVD(n_factors=2, n_epochs=5)], "knn": [ItemKNN(k=5)], "ease": [EASE(reg=20.0)]}
    found = rank_warm(
        data, splits["last20"].to_numpy(), splits["position_time"].to_numpy(), content=ContentModel(films),
        popularity=Popularity(), settings=settings, alpha_step=0.5,
    )  # fmt: skip
    assert {("svd", "classic"), ("knn", "classic")} < set(zip(found["cf"], found["curve"], strict=True))
    assert set(found["curve"]) == {"classic", "learned"}
    assert found[NDCG].dropna().between(0, 1).all()
