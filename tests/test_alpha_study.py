"""The alpha study: tuned curves by hand, test values equal to ranking the blend itself, the same whatever jobs is."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from recsys_study.alpha_curve import (
    AlphaStudy,
    Conditions,
    Mixed,
    Model,
    Series,
    best_setting,
    pair,
    study_alpha,
    surfaces,
)
from recsys_study.alpha_warm import rank_warm
from recsys_study.weights import (
    ENSEMBLE,
    MARGIN,
    NDCG,
    PARTS,
    WEIGHTS,
    WHOLE,
    choose,
    crossfit_ensemble,
    curve_value,
    eliminate,
    segment_losses,
    shipped_curve,
    surface_of,
    tune_curves,
    tune_ensemble,
    tune_ranges,
)
from recsys_utils.base import Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation.protocols import fold_users, make_splits, profile_size_cases, rank_and_measure, warm_split
from recsys_utils.evaluation.significance import Bootstrap
from recsys_utils.models.content import ContentModel
from recsys_utils.models.rankers import EASE, ItemKNN, Popularity
from recsys_utils.models.surprise_models import KNN, SVD
from recsys_utils.ranking.hybrid import CURVES, AlphaCurve, Hybrid, WeightedEnsemble

SIZES = [0, 2, 3, 8]
BOOT = Bootstrap(60, 1, 200)


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


SETTINGS = {
    "svd": [SVD(n_factors=2, n_epochs=3)],
    "knn": [KNN(k=5, min_support=1)],
    "item_knn": [ItemKNN(k=1), ItemKNN(k=20)],
    "ease": [EASE(reg=20.0), EASE(reg=5.0)],
}


def run(world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame], jobs: int, **more: bool) -> AlphaStudy:
    data, splits, films, users = world
    content = dict.fromkeys(users["fold"], ContentModel(films))
    return study_alpha(Conditions(data, splits, users, SETTINGS, SIZES, 0.25, 3, **more), content, jobs)


def test_learned_takes_the_best_weight_at_each_size_and_isotonic_never_falls() -> None:
    surface = np.array([[0.1, 0.3, 0.3], [0.5, 0.2, 0.1], [0.0, 0.0, 0.9]])
    tuned = tune_curves(surface, np.array([1, 5, 20]), np.array([0.0, 0.5, 1.0]))
    assert tuned["learned"].alphas == (0.5, 0.0, 1.0)  # ties: the lower
    assert tuned["isotonic"].alphas == (0.0, 0.0, 1.0)  # .1 + .5 + .9 beats .3 + .2 + .9
    assert tuned["classic"] == CURVES["classic"]
    assert set(tuned) == {*CURVES, "isotonic", "learned"}


def test_curve_value_weighs_all_sizes_equally_at_the_nearest_weight() -> None:
    surface = np.array([[0.1, 0.2], [0.3, 0.5]])
    # step: 0 at n = 1, .7 at n = 20, whose nearest grid alpha is 1
    assert curve_value(CURVES["step"], surface, np.array([1, 20]), np.array([0.0, 1.0])) == (0.1 + 0.5) / 2


def test_a_surface_leaves_out_the_empty_profile_and_sizes_nobody_has() -> None:
    values = np.full((3, 4, 2), np.nan)
    values[:, 0], values[:2, 1], values[1, 3] = 9.0, [[0.1, 0.2], [0.3, 0.4]], [0.5, 0.6]
    surface, sizes = surface_of(values, [0, 1, 2, 5])
    assert sizes.tolist() == [1, 5]
    np.testing.assert_allclose(surface, [[0.2, 0.3], [0.5, 0.6]])


def test_no_like_means_popularity_at_every_weight() -> None:
    films = pd.DataFrame({"item_id": list("abcd"), "genres": [["War"], ["War"], ["Love"], ["Love"]]})
    frame = pd.DataFrame({"user_id": ["x", "y", "z"], "item_id": ["a", "c", "c"], "rating": [5, 5, 5]})
    data = Interactions.from_frame(frame, scale=Scale(1, 5), items=films["item_id"])
    models = {Model("content"): ContentModel(films), Model("popularity"): Popularity(), Model("ease"): EASE(reg=1.0)}
    for model in models.values():
        model.fit(data)
    profiles = csr_matrix(np.array([[2, 0, 0, 0], [5, 0, 0, 0]], np.float32))
    relevant = csr_matrix(np.array([[0, 0, 1, 0], [0, 1, 0, 0]], np.float32))
    ends = np.array([0.0, 1.0])
    signals = {"ease": pair("content", "ease", ends), "popularity": pair("popularity", "popularity", ends[1:])}
    found = surfaces(models, signals, profiles, relevant, data.scale.liked)
    assert found["ease"][0].tolist() == [1.0, 1.0]  # c is the most popular film
    assert found["ease"][1, 0] == 1.0  # by content the other War film
    assert found["popularity"][1, 0] < 1.0


# ---- the ensemble and the rule


def mixed(good: int, users: int = 20, sizes: int = 2, gain: float = 0.05) -> np.ndarray:
    """(U, S, W) ndcg of .2 for every ensemble but one."""
    values = np.full((users, sizes, len(WEIGHTS)), 0.2)
    values[:, :, good] += gain
    return values


def test_the_ensemble_takes_the_best_weights_and_changes_them_only_for_a_gain() -> None:
    values = mixed(good=40)
    values[:, 1, 41] = 0.2501  # better by less than the way there costs
    found = tune_ensemble(values, [1, 5])
    assert found["sizes"] == [1, 5]
    assert [found["weights"][part][0] for part in found["weights"]] == WEIGHTS[40].tolist()
    assert all(first == second for first, second in found["weights"].values())


def test_crossfitting_never_judges_users_by_weights_tuned_on_them() -> None:
    rng = np.random.default_rng(0)
    noise = rng.random((50, 1, len(WEIGHTS)))  # nothing to learn
    assert noise.mean(axis=0).max() > 0.55  # what tuning and judging on the same users reports
    assert crossfit_ensemble(noise, [3]).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("gain", "picked"), [(0.05, ENSEMBLE), (0.002, "ease"), (-0.05, "ease")])
def test_the_rule_wants_a_gain_worth_the_weights(gain: float, picked: str) -> None:
    single = np.full((20, 2, 3), [0.1, 0.15, 0.2])
    validation = {"ease": single, "item_knn": single - 0.01, ENSEMBLE: single + gain}
    choice = choose(validation, mixed(40, gain=gain), [1, 5], np.array([0.0, 0.5, 1.0]), Bootstrap(20, 1, 200))
    assert choice.cf == picked
    assert choice.curve([1, 5]).min() > 0.75  # whatever form it has, the grid's 1 is the nearest
    assert choice.gain.value == pytest.approx(max(gain, 0.0))  # a worse one is never tuned


# ---- what ships


def losses_of(content: float, low: float, high: float) -> list[str]:
    """The alphas that ship where leaving content out costs ``content`` in the sizes from low to high, else nothing."""
    n, noise = np.array([1, 5, 8, 30, 50]), np.random.default_rng(1).normal(0, 0.01, (200, 5))
    full = 0.3 + noise
    without = full - content * ((n >= low) & (n <= high)) + np.random.default_rng(2).normal(0, 0.005, (200, 5))
    losses = segment_losses("content", without, full, n.tolist(), Bootstrap(200, 1, 500))
    return list(shipped_curve(AlphaCurve("learned", tuple(n.tolist()), (0.5,) * 5), losses).alphas)


def test_content_ships_only_where_leaving_it_out_costs_more_than_the_margin() -> None:
    assert losses_of(3 * MARGIN, 8, 30) == [1.0, 1.0, 0.5, 0.5, 1.0]
    assert losses_of(3 * MARGIN, 50, 50) == [1.0, 1.0, 1.0, 1.0, 0.5]
    assert losses_of(0.5 * MARGIN, 1, 50) == [1.0] * 5  # a loss within the margin earns nothing


def test_of_two_parts_that_stand_in_for_each_other_one_ships() -> None:
    """Item KNN and EASE are equally good in any mix, popularity is worse: it goes, and one of the two."""
    personal = 1 - WEIGHTS[:, PARTS.index("popularity")]
    values = np.broadcast_to(0.2 + 0.2 * personal, (60, 3, len(WEIGHTS)))
    kept, losses = eliminate({"random": values}, None, [1, 10, 50], Bootstrap(60, 1, 200))
    assert len(kept) == 1
    assert kept[0] != "popularity"
    assert {loss.step for loss in losses} == {1, 2}


def test_a_part_that_whole_histories_need_ships() -> None:
    personal = 1 - WEIGHTS[:, PARTS.index("popularity")]
    cut, whole = np.full((60, 3, len(WEIGHTS)), 0.3), np.broadcast_to(0.2 + 0.2 * personal, (60, len(WEIGHTS)))
    kept, losses = eliminate({"random": cut}, whole, [1, 10, 50], Bootstrap(60, 1, 200))
    assert kept != ("popularity",)
    assert any(loss.segment == WHOLE for loss in losses)


def test_a_part_that_one_order_needs_ships() -> None:
    personal = 1 - WEIGHTS[:, PARTS.index("popularity")]
    still = np.full((60, 3, len(WEIGHTS)), 0.3)
    needs = np.broadcast_to(0.2 + 0.2 * WEIGHTS[:, PARTS.index("ease")], still.shape)
    kept, _ = eliminate({"random": np.broadcast_to(0.3 + 0.1 * personal, still.shape)}, None, [1, 10, 50], BOOT)
    assert kept in (("item_knn",), ("ease",))
    random = np.broadcast_to(0.3 + 0.1 * WEIGHTS[:, PARTS.index("ease")], still.shape)
    assert eliminate({"random": random, "time": needs}, None, [1, 10, 50], BOOT)[0] == ("ease",)


def test_test_users_decide_nothing(
    world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame], study: AlphaStudy
) -> None:
    """Canary: other ratings of a fold's test users leave all that the fold chose as it was; of validation users not."""
    data, splits, films, users = world
    members = fold_users(users, 0)

    def measured(found: AlphaStudy) -> tuple[str, np.ndarray]:
        surface = found.validation["random", Mixed("content", "ease")][members.validation]
        own = found.settings.query("fold == 0")[NDCG]
        return str(found.picks.query("fold == 0").to_dict("records")), np.append(own, surface)

    def with_other_ratings_of(changed: np.ndarray) -> AlphaStudy:
        frame = data.to_frame()
        frame["rating"] = frame["rating"].mask(frame["user_id"].isin(data.users[changed]), 6 - frame["rating"])
        return run((Interactions.from_frame(frame, scale=data.scale, items=data.items), splits, films, users), jobs=1)

    (picks, values), (own_picks, own_values) = measured(with_other_ratings_of(members.test)), measured(study)
    assert picks == own_picks
    np.testing.assert_array_equal(values, own_values)
    assert not np.array_equal(measured(with_other_ratings_of(members.validation))[1], own_values, equal_nan=True)


# ---- the protocol


def column(study: AlphaStudy, data: Interactions, key: Series, n: int | None) -> pd.Series:
    return pd.Series(study.series[key][:, SIZES.index(n or 0)], index=data.users)


@pytest.mark.parametrize("curve", ["classic", "step"])
def test_test_values_equal_ranking_the_blend(
    world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame], study: AlphaStudy, curve: str
) -> None:
    data, splits, films, users = world
    fold = 0
    train = data.of_users(fold_users(users, fold).fit)
    reg = SETTINGS["ease"][int(study.settings.query("fold == 0 and cf == 'ease' and chosen")["candidate"].iloc[0])].reg
    blend = Hybrid(ContentModel(films), EASE(reg), CURVES[curve], Popularity()).fit(train)
    for case in profile_size_cases(data, splits, users, fold, order="time", sizes=SIZES):
        expected = rank_and_measure(blend, case).set_index("user_id")[NDCG].dropna()
        got = column(study, data, Series("time", "blend", "ease", curve), case.n).reindex(expected.index)
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_a_model_alone_is_the_blend_at_one_and_orders_are_averaged(
    world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame], study: AlphaStudy
) -> None:
    data, splits, _, users = world
    reg = SETTINGS["ease"][int(study.settings.query("fold == 1 and cf == 'ease' and chosen")["candidate"].iloc[0])].reg
    model = EASE(reg).fit(data.of_users(fold_users(users, 1).fit))
    per_order = []
    for order in ("random_0", "random_1"):
        (case,) = profile_size_cases(data, splits, users, 1, order=order, sizes=[8])
        has_like = (case.profiles.toarray() >= 4).any(axis=1)
        per_order.append(rank_and_measure(model, case).set_index("user_id")[NDCG][has_like])
    expected = (per_order[0] + per_order[1]).dropna() / 2
    rows = column(study, data, Series("random", "ease"), 8)
    np.testing.assert_allclose(rows.reindex(expected.index), expected, atol=1e-12)


def test_the_ensemble_of_a_fold_is_the_recommender_that_would_be_served(
    world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame], study: AlphaStudy
) -> None:
    data, splits, _, users = world
    members = fold_users(users, 2)
    train = data.of_users(members.fit)
    own = study.settings[study.settings["fold"] == 2]
    parts = {
        "popularity": Popularity(),
        "item_knn": SETTINGS["item_knn"][best_setting(own, "item_knn")],
        "ease": SETTINGS["ease"][best_setting(own, "ease", 20)],
    }
    weights = tune_ensemble(study.mixed["time"][members.validation], SIZES)
    model = WeightedEnsemble({name: type(part)(**vars_of(part)) for name, part in parts.items()}, **weights).fit(train)
    (case,) = profile_size_cases(data, splits, users, 2, order="time", sizes=[8])
    has_like = (case.profiles.toarray() >= 4).any(axis=1)
    expected = rank_and_measure(model, case).set_index("user_id")[NDCG][has_like].dropna()
    got = column(study, data, Series("time", ENSEMBLE), 8).reindex(expected.index)
    np.testing.assert_allclose(got, expected, atol=1e-12)


def vars_of(model: object) -> dict[str, object]:
    return {name: value for name, value in vars(model).items() if name in ("k", "shrink", "binarise", "reg")}


def test_surfaces_and_series_agree(study: AlphaStudy) -> None:
    surface, sizes = surface_of(study.test["random", "ease"], SIZES)
    assert study.alphas.tolist() == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(surface[:, 0], np.nanmean(study.matrix("content"), axis=0))
    np.testing.assert_allclose(surface[:, -1], np.nanmean(study.matrix("ease"), axis=0))
    assert study.sizes_of() == sizes.tolist() == [2, 3, 8]
    table = study.per_user(np.arange(60).astype(str).astype(object))
    assert not table.duplicated(["user_id", "order", "model", "cf", "curve", "n"]).any()


def test_settings_and_pairs_come_from_validation(study: AlphaStudy) -> None:
    means = study.settings.groupby(["fold", "cf", "candidate"])[NDCG].mean()
    chosen = study.settings[study.settings["chosen"]].groupby(["fold", "cf"])[NDCG].mean()
    np.testing.assert_allclose(chosen, means.groupby(["fold", "cf"]).max())
    choice = study.choose(Bootstrap(60, 1, 200))
    assert choice.cf in {*SETTINGS, ENSEMBLE}
    assert set(study.settings_of(ENSEMBLE, SETTINGS)) == {"parts", "sizes", "weights"}
    for fold, name in zip(study.picks["fold"], study.picks["cf"], strict=True):
        assert name in {*SETTINGS, ENSEMBLE}, fold


def test_without_text_and_time_stamps_content_and_the_time_order_leave(
    world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame], study: AlphaStudy
) -> None:
    bare = run(world, jobs=1, has_text=False, has_time=False)
    assert {key[0] for key in bare.series} == {"random"}
    assert not any(key[1] == "content" or "classic" in key[3] for key in bare.series)
    np.testing.assert_array_equal(bare.matrix("blend", "ease", "learned"), study.matrix("ease"))
    assert bare.choose(Bootstrap(60, 1, 200)).curve([1, 50]).tolist() == [1, 1]


def test_metric_rows_average_sizes_with_equal_weight(study: AlphaStudy) -> None:
    rows = (
        study.metric_rows(Bootstrap(60, seed=1, resamples=200)).set_index(["model", "variant", "segment"]).sort_index()
    )
    series = rows.loc["blend", "order=random;alpha=learned;cf=ease"]
    assert series.loc["n=1-30", "value"] == pytest.approx(series.loc[["n=2", "n=3", "n=8"], "value"].mean())
    assert rows["n"].min() > 0
    assert not rows.index.duplicated().any()


def test_results_do_not_depend_on_jobs(
    world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame], study: AlphaStudy
) -> None:
    parallel = run(world, jobs=2)
    assert parallel.series.keys() == study.series.keys()
    for key, values in study.series.items():
        np.testing.assert_array_equal(parallel.series[key], values)
    pd.testing.assert_frame_equal(parallel.settings, study.settings)


# ---- whole histories


def test_warm_weights_are_tuned_per_range_of_sizes() -> None:
    values = np.array([[1.0, 0.0], [0.8, 0.0], [0.0, 0.9], [0.0, 1.0]])
    sizes, path, reached = tune_ranges(values, np.array([10, 10, 30, 30]))
    assert sizes[:4] == [19, 20, 49, 50]
    assert path[:3].tolist() == [0, 1, 1]
    assert reached == pytest.approx((1 + 0.8 + 0.9 + 1) / 4)


def test_warm_rows_name_what_they_blend(
    world: tuple[Interactions, pd.DataFrame, pd.DataFrame, pd.DataFrame],
) -> None:
    data, splits, films, _ = world
    found = rank_warm(
        data, splits["last20"].to_numpy(), splits["position_time"].to_numpy(), content=ContentModel(films),
        settings=SETTINGS, alpha_step=0.5,
    ).table  # fmt: skip
    assert {("svd", "classic"), ("knn", "classic")} < set(zip(found["cf"], found["curve"], strict=True))
    assert set(found["curve"]) == {"classic", "learned", "alone"}
    outer = warm_split(data, splits["last20"].to_numpy())
    either = [rank_and_measure(EASE(reg=ease.reg).fit(outer.train), outer)[NDCG].mean() for ease in SETTINGS["ease"]]
    assert found.loc[found["curve"] == "alone", NDCG].mean() in either
    assert found[NDCG].dropna().between(0, 1).all()
