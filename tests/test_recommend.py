"""Which strategy ranks a list, and explanations whose parts add up to the scores they explain."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix, vstack

from recsys_utils.base import InputError, Recommender, Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.models.content import ContentModel
from recsys_utils.models.rankers import EASE, ItemKNN, Popularity
from recsys_utils.models.surprise_models import SVD
from recsys_utils.ranking.hybrid import CURVES, AlphaCurve, Hybrid, WeightedEnsemble
from recsys_utils.ranking.recommend import COLUMNS, HybridRecommender, Part, Person, hybrid_from, in_words, strategy_of

N_ITEMS = 40
ALWAYS_CONTENT = AlphaCurve("content", (0,), (0.0,))
ALWAYS_CF = AlphaCurve("cf", (0,), (1.0,))


@pytest.fixture(scope="module")
def items() -> pd.DataFrame:
    """Film i: genre by i % 4, director by i // 2 (films 0 and 1 share one), every second id known to TMDB."""
    return pd.DataFrame(
        {
            "item_id": [f"{i:02d}" for i in range(N_ITEMS)],
            "title": [f"Film {i}" for i in range(N_ITEMS)],
            "year": pd.array([1950 + i if i else None for i in range(N_ITEMS)], dtype="Int64"),
            "genres": [[["Comedy", "Drama", "War", "Western"][i % 4]] for i in range(N_ITEMS)],
            "directors": [[f"m.0{i // 2}"] for i in range(N_ITEMS)],
            "imdb_id": None,
            "tmdb_id": [str(i) if i % 2 else None for i in range(N_ITEMS)],
        }
    )


@pytest.fixture(scope="module")
def train(items: pd.DataFrame) -> Interactions:
    rng = np.random.default_rng(5)
    rated = rng.random((60, N_ITEMS)) < np.linspace(0.7, 0.1, N_ITEMS)
    user, item = np.nonzero(rated)
    frame = pd.DataFrame(
        {
            "user_id": [f"u{u:02d}" for u in user], "item_id": items["item_id"].to_numpy()[item],
            "rating": rng.integers(1, 6, len(user)),
        }
    )  # fmt: skip
    return Interactions.from_frame(frame, scale=Scale(1, 5), items=items["item_id"])


def recommender(
    items: pd.DataFrame, train: Interactions, curve: AlphaCurve = CURVES["classic"], cf: Recommender | None = None,
    exploration: str = "none", ratio: float = 0.0,
) -> HybridRecommender:  # fmt: skip
    hybrid = Hybrid(ContentModel(items), cf or EASE(reg=10.0), curve, Popularity()).fit(train)
    return HybridRecommender(hybrid, items, exploration, ratio, seed=3)


def profile(ratings: dict[int, float]) -> csr_matrix:
    places = sorted(ratings)
    data = np.array([ratings[p] for p in places], np.float32)
    return csr_matrix((data, (np.zeros(len(places), int), places)), shape=(1, N_ITEMS))


@pytest.mark.parametrize(
    ("alpha", "fallback", "expected"),
    [
        (0.0, True, "popularity_fallback"), (0.7, True, "popularity_fallback"), (0.0, False, "content_based"),
        (0.01, False, "hybrid_content_heavy"), (0.499, False, "hybrid_content_heavy"),
        (0.5, False, "hybrid_collaborative_heavy"), (1.0, False, "hybrid_collaborative_heavy"),
    ],
)  # fmt: skip
def test_strategies(alpha: float, fallback: bool, expected: str) -> None:
    assert strategy_of(alpha, fallback) == expected


@pytest.mark.parametrize(
    ("n", "rating", "expected", "alpha"),
    [
        (0, 5, "popularity_fallback", 0.0),
        (12, 3, "popularity_fallback", 0.0),  # twelve ratings, none a like
        (4, 5, "content_based", 0.0),
        (10, 5, "hybrid_content_heavy", 0.1),  # classic: .3 (10 - 5) / 15
        (20, 5, "hybrid_collaborative_heavy", 0.7),
    ],
)
def test_the_classic_fallback_order_by_profile_size(
    items: pd.DataFrame, train: Interactions, n: int, rating: float, expected: str, alpha: float
) -> None:
    found = recommender(items, train).recommend(profile(dict.fromkeys(range(n), rating)), ["me"], n=5)
    assert list(found.columns) == COLUMNS
    assert found["strategy"].unique().tolist() == [expected]
    assert found["alpha"].to_numpy() == pytest.approx(alpha)
    assert found["rank"].tolist() == [1, 2, 3, 4, 5]
    assert found["score"].is_monotonic_decreasing
    if expected == "popularity_fallback":
        popular = np.argsort(-np.bincount(train.item[train.rating >= 4], minlength=N_ITEMS), kind="stable")
        assert found["item_id"].tolist() == [f"{i:02d}" for i in popular if i >= n][:5]
    else:
        parts = (1 - found["alpha"]) * found["content_score"] + found["alpha"] * found["cf_score"]
        assert found["score"].to_numpy() == pytest.approx(parts.to_numpy(), abs=1e-6)


def test_rated_films_stay_out_and_a_long_list_ends_with_the_catalogue(items: pd.DataFrame, train: Interactions) -> None:
    rated = [0, 3, 17, 39]
    found = recommender(items, train).recommend(profile(dict.fromkeys(rated, 5.0)), ["me"], n=500)
    expected = {f"{i:02d}" for i in range(N_ITEMS)} - {f"{i:02d}" for i in rated}
    assert len(found) == N_ITEMS - len(rated)
    assert set(found["item_id"]) == expected


def test_users_stay_apart_whatever_the_block(items: pd.DataFrame, train: Interactions) -> None:
    rows = recommender(items, train, exploration="mid-rank", ratio=0.2)
    together = rows.recommend(train.user_item, list(train.users), n=10)
    for u in (0, 31, 59):
        alone = rows.recommend(train.user_item[u], [train.users[u]], n=10)
        expected = together[together["user_id"] == train.users[u]].reset_index(drop=True)
        pd.testing.assert_frame_equal(alone, expected, check_exact=False, rtol=1e-5)
    assert together["user_id"].drop_duplicates().tolist() == train.users.tolist()


def test_titles_carry_the_year_where_it_is_known(items: pd.DataFrame, train: Interactions) -> None:
    assert recommender(items, train).explainer.titles[:2] == ["Film 0", "Film 1 (1951)"]


def why(rows: HybridRecommender, mine: csr_matrix, items: list[int], alpha: float) -> dict[str, Part]:
    components = rows.hybrid.components(mine)
    person = Person(mine, components.content[0], components.cf[0], alpha, fallback=False)
    return dict(rows.explainer.parts(person, np.array(items, np.int32)))


def test_content_reason_names_the_liked_film_and_what_it_shares(items: pd.DataFrame, train: Interactions) -> None:
    # the only like is film 2 (War, director m.01); film 3 shares its director alone, films 6, 10 ... its genre alone
    found = recommender(items, train, ALWAYS_CONTENT).recommend(profile({2: 5, 9: 1}), ["me"], n=2)
    assert found["item_id"].iloc[0] == "03"
    assert found["reason"].str.contains("Film 2 (1952)", regex=False).all()
    assert "director" in found["reason"].iloc[0]
    assert "genre War" in found["reason"].iloc[1]


def test_content_shares_add_up_to_the_cosine(items: pd.DataFrame, train: Interactions) -> None:
    rows = recommender(items, train)
    mine = profile({2: 5, 7: 4, 8: 2, 11: 4})
    films = [3, 6, 9, 15]
    shares = why(rows, mine, films, 0.0)["content"].shares
    assert shares.sum(axis=0) == pytest.approx(rows.hybrid.content.scores(mine)[0, films], abs=1e-6)
    assert (shares[2] == 0).all()  # a film rated 2 is no like


def test_collaborative_reason_names_the_rating_that_adds_most(items: pd.DataFrame, train: Interactions) -> None:
    rows = recommender(items, train, ALWAYS_CF)
    assert rows.explainer.additive == {"ease"}
    mine = profile({0: 5, 5: 4, 12: 1, 30: 4})
    found = rows.recommend(mine, ["me"], n=3)
    best = int(found["item_id"].iloc[0])
    alone = {i: rows.hybrid.cf.scores(profile({i: r}))[0, best] for i, r in zip(mine.indices, mine.data, strict=True)}
    top = max(alone, key=lambda i: alone[i])
    assert rows.explainer.titles[top] in found["reason"].iloc[0]
    shares = why(rows, mine, [best], 1.0)["ease"].shares
    assert shares.sum() == pytest.approx(rows.hybrid.cf.scores(mine)[0, best], abs=1e-5)


def test_a_model_that_is_no_sum_gives_a_position_instead_of_a_film(items: pd.DataFrame, train: Interactions) -> None:
    rows = recommender(items, train, ALWAYS_CF, SVD(n_factors=4, n_epochs=5))
    assert rows.explainer.additive == set()
    reasons = rows.recommend(profile({0: 5, 5: 4, 12: 1}), ["me"], n=2)["reason"]
    for n, reason in enumerate(reasons, 1):
        assert f"position {n} of {N_ITEMS - 3}" in reason
        assert "Film" not in reason


@pytest.mark.parametrize("strategy", ["genre-repaired", "mid-rank", "popular"])
def test_exploration_says_so(items: pd.DataFrame, train: Interactions, strategy: str) -> None:
    found = recommender(items, train, exploration=strategy, ratio=0.2).recommend(profile({0: 5, 4: 4}), ["me"], n=10)
    picks = found[found["is_exploration"]]
    assert picks["rank"].tolist() == [9, 10]
    assert picks["strategy"].unique().tolist() == [f"exploration:{strategy}"]
    assert picks["reason"].str.startswith("For diversity").all()
    assert not found["strategy"].iloc[:8].str.startswith("exploration").any()


@pytest.mark.parametrize("strategy", ["mmr", "dpp", "xquad", "calibration", "discount"])
def test_what_a_reranker_brings_in_is_marked_and_says_why(
    items: pd.DataFrame, train: Interactions, strategy: str
) -> None:
    mine = profile({0: 5, 4: 4, 2: 2, 6: 2})  # likes Comedy, rated as much War: the plain list is Comedy
    plain = recommender(items, train, ALWAYS_CONTENT).recommend(mine, ["me"], n=4)
    found = recommender(items, train, ALWAYS_CONTENT, exploration=strategy, ratio=0.8).recommend(mine, ["me"], n=4)
    assert found["is_exploration"].tolist() == (~found["item_id"].isin(plain["item_id"])).tolist()
    picks = found[found["is_exploration"]]
    assert len(picks)
    assert picks["strategy"].unique().tolist() == [f"exploration:{strategy}"]
    assert found["reason"].str.startswith("For diversity").tolist() == found["is_exploration"].tolist()


def test_variety_leaves_the_popularity_fallback_alone(items: pd.DataFrame, train: Interactions) -> None:
    block = vstack([profile({}), profile({39: 1}), profile({0: 5, 4: 4, 2: 2})]).tocsr()
    plain, varied = (
        recommender(items, train, ALWAYS_CONTENT, exploration=strategy, ratio=0.8).recommend(
            block, ["a", "b", "c"], n=6
        )
        for strategy in ("none", "dpp")
    )
    without_like = plain["user_id"] != "c"
    pd.testing.assert_frame_equal(varied[without_like], plain[without_like])
    assert varied.loc[~without_like, "is_exploration"].any()


def test_without_a_like_the_reason_is_popularity(items: pd.DataFrame, train: Interactions) -> None:
    for mine in (profile({}), profile({39: 1})):
        first = recommender(items, train).recommend(mine, ["me"], n=1).iloc[0]
        likes = np.sum((train.item == int(first["item_id"])) & (train.rating >= 4))
        assert f"liked by {likes} people (position 1 of {N_ITEMS})" in first["reason"]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], ""),
        (["director:m.0bx"], "the director"),
        (["director:Joel_Coen", "actor:m.01"], "the director Joel Coen and the actor"),
        (["actor:Uma_Thurman", "actor:Tim_Roth"], "the actors Uma Thurman, Tim Roth"),
        (["genre:Sci-Fi", "keyword:m.02", "keyword:m.03"], "the genre Sci-Fi and 2 subjects"),
        (["overview:lost island"], "the word lost island"),
    ],
)
def test_tokens_in_words(tokens: list[str], expected: str) -> None:
    assert in_words(tokens) == expected


def test_contributions_split_the_score(items: pd.DataFrame, train: Interactions) -> None:
    rows = recommender(items, train)
    mine = profile(dict.fromkeys(range(10), 5))
    found = rows.recommend(mine, ["me"], n=3, explain=True)
    first = found.iloc[0]
    content, cf = (float(part.split(" ")[0]) for part in first["contributions"].split(" + "))
    assert content == pytest.approx((1 - first["alpha"]) * first["content_score"], abs=5e-4)
    assert content + cf == pytest.approx(first["score"], abs=1e-3)
    assert "Film" in first["contributions"]
    assert rows.recommend(profile({}), ["me"], n=1, explain=True)["contributions"].tolist() == ["popularity"]


def mixed(weights: dict[str, list[float]]) -> WeightedEnsemble:
    return WeightedEnsemble(
        {"popularity": Popularity(), "item_knn": ItemKNN(k=9), "ease": EASE(reg=10.0)}, [1], weights
    )


def parts_of(contributions: str) -> dict[str, float]:
    found = (part.partition(" (")[0].partition(" ") for part in contributions.split(" + "))
    return {name: float(value) for value, _, name in found}


def test_an_ensemble_is_explained_part_by_part(items: pd.DataFrame, train: Interactions) -> None:
    cf = mixed({"popularity": [0.2], "item_knn": [0.3], "ease": [0.5]})
    rows = recommender(items, train, AlphaCurve("most", (0,), (0.8,)), cf)
    assert rows.explainer.additive == {"item_knn", "ease"}
    found = rows.recommend(profile(dict.fromkeys(range(0, 20, 2), 5)), ["me"], n=5, explain=True)
    for row in found.itertuples():
        parts = parts_of(row.contributions)
        assert set(parts) == {"content", "popularity", "item_knn", "ease"}
        assert sum(parts.values()) == pytest.approx(row.score, abs=2.1e-3)  # four roundings
        assert parts["content"] == pytest.approx(0.2 * row.content_score, abs=5e-4)
    assert found["strategy"].eq("hybrid_collaborative_heavy").all()


def test_an_item_without_ratings_is_explained_by_content_alone(items: pd.DataFrame, train: Interactions) -> None:
    cf = mixed({"popularity": [0.2], "item_knn": [0.3], "ease": [0.5]})
    rows = recommender(items, train.where(train.item != 8), AlphaCurve("most", (0,), (0.8,)), cf)
    found = rows.recommend(profile({0: 5, 4: 5, 9: 1}), ["me"], n=N_ITEMS, explain=True).set_index("title")
    row = found.loc["Film 8 (1958)"]
    assert "No one has rated it" in row["reason"]
    assert "genre Comedy with Film 0" in row["reason"]
    parts = parts_of(row["contributions"])
    assert set(parts) == {"content", "popularity", "item_knn", "ease", "content regression"}
    assert parts["popularity"] == parts["item_knn"] == parts["ease"] == 0
    assert sum(parts.values()) == pytest.approx(row["score"], abs=2.1e-3)


def test_popularity_with_all_the_weight_is_the_fallback(items: pd.DataFrame, train: Interactions) -> None:
    """Short profiles get popularity's list as those without a like do, longer ones their own."""
    cf = WeightedEnsemble(
        {"popularity": Popularity(), "ease": EASE(reg=10.0)}, [2, 3], {"popularity": [1, 0], "ease": [0, 1]}
    )
    rows = recommender(items, train, ALWAYS_CF, cf, "dpp", 0.8)
    block = vstack([profile({}), profile({30: 5, 31: 5}), profile({30: 5, 31: 5, 32: 5})]).tocsr()
    found = rows.recommend(block, ["none", "short", "long"], n=5).groupby("user_id", sort=False)
    assert found["strategy"].unique().map(list).tolist()[:2] == [["popularity_fallback"]] * 2
    lists = found["item_id"].agg(list)
    assert lists["none"] == lists["short"] != lists["long"]


def test_popularity_where_it_adds_most_is_the_reason(items: pd.DataFrame, train: Interactions) -> None:
    rows = recommender(items, train, ALWAYS_CF, mixed({"popularity": [0.9], "item_knn": [0.0], "ease": [0.1]}))
    assert "popular" in rows.recommend(profile({30: 5}), ["me"], n=1)["reason"].iloc[0]


def test_default_json_builds_its_ensemble(items: pd.DataFrame) -> None:
    weights = {"popularity": [0.4], "ease": [0.6]}
    settings = {"parts": {"popularity": {}, "ease": {"reg": 5.0}}, "sizes": [1], "weights": weights}
    choice = {
        "cf": "mixture",
        "settings": settings,
        "curve": CURVES["ramp"].to_json(),
        "content": {"fields": ["genres"]},
    }
    found = hybrid_from(choice, items, has_billing_order=False).cf
    assert isinstance(found, WeightedEnsemble)
    assert found.weights == {"popularity": (0.4,), "ease": (0.6,)}


def test_a_list_needs_a_length(items: pd.DataFrame, train: Interactions) -> None:
    with pytest.raises(InputError, match="got n = 0"):
        recommender(items, train).recommend(profile({}), ["me"], n=0)
