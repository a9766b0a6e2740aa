"""Neighbours against numpy's own correlation, user by user; the store; the list."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
import surprise
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_matrix, vstack

from recsys_utils.base import InputError, RatingPredictor, Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.models import neighbours
from recsys_utils.models.neighbours import (
    Neighbours,
    good_films,
    item_mean_and_offset,
    predict_pairs,
    recommend,
)
from recsys_utils.personal import own_ratings
from recsys_utils.ranking.recommend import recommend_by_neighbours

HALF_STARS = Scale(0.5, 5)


def made_up(users: int, items: int, density: float, seed: int, scale: Scale = HALF_STARS) -> Interactions:
    """Random half stars (or whole points) with a little agreement between users."""
    rng = np.random.default_rng(seed)
    user, item = np.nonzero(rng.random((users, items)) < density)
    liking = rng.standard_normal((users, 2)) @ rng.standard_normal((2, items)) + rng.standard_normal((users, items))
    steps = 2 if scale.lo == 0.5 else 1
    middle = (scale.lo + scale.hi) / 2
    rating = np.clip(np.rint(steps * (middle + liking[user, item])) / steps, scale.lo, scale.hi)
    frame = pd.DataFrame({"user_id": user.astype(str), "item_id": item.astype(str), "rating": rating})
    ids = [[str(n) for n in range(size)] for size in (users, items)]
    return Interactions.from_frame(frame, scale=scale, users=ids[0], items=ids[1])


def by_hand(
    train: Interactions, profile: csr_matrix, model: Neighbours
) -> tuple[list[tuple[float, int, int]], np.ndarray]:  # fmt: skip
    """Neighbours as (similarity, overlap, user), best first, and predictions, by the definition."""
    rows = [train.user_item[u] for u in range(len(train.users))]
    x = dict(zip(profile.indices.tolist(), profile.data.astype(float), strict=True))
    found = []
    for user, row in enumerate(rows):
        y = dict(zip(row.indices.tolist(), row.data.astype(float), strict=True))
        both = sorted(x.keys() & y.keys())
        if len(both) < model.min_overlap or x == y:
            continue
        a, b = (np.array([z[i] for i in both]) for z in (x, y))
        if model.form == "overall":
            sd = np.std(list(x.values())) * np.std(list(y.values()))
            product = np.mean((a - np.mean(list(x.values()))) * (b - np.mean(list(y.values()))))
            similarity = product / sd if sd > 0 else 0.0
        else:
            similarity = np.corrcoef(a, b)[0, 1] if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0
        similarity = round(similarity * len(both) / (len(both) + model.shrinkage), 9)
        if similarity > 0:
            found.append((-similarity, -len(both), user))
    nearest = [(-s, -n, u) for s, n, u in sorted(found)[: model.k]]
    predicted = np.full(len(train.items), np.nan)
    for item in range(len(train.items)):
        votes = [(s, rows[u][0, item] - rows[u].data.mean()) for s, _, u in nearest if item in rows[u].indices]
        if len(votes) >= model.min_votes:
            predicted[item] = np.mean(list(x.values())) + sum(s * d for s, d in votes) / sum(s for s, _ in votes)
    return nearest, predicted


@pytest.mark.parametrize(
    "model",
    [
        Neighbours(),
        Neighbours(k=7, min_overlap=3, min_votes=1),
        Neighbours(k=20, shrinkage=10.0),
        Neighbours(k=20, form="overall"),
    ],
    ids=["classic", "small", "shrunk", "overall"],
)
@pytest.mark.parametrize("scale", [HALF_STARS, Scale(1, 5), Scale(0, 10)], ids=["half", "whole", "ten"])
def test_equals_the_definition_by_numpy(model: Neighbours, scale: Scale) -> None:
    train = made_up(60, 40, 0.4, seed=3, scale=scale)
    model.fit(train)
    new = made_up(3, 40, 0.5, seed=4, scale=scale).user_item
    for profile in (new[0], new[1], train.user_item[5]):
        nearest, predicted = by_hand(train, profile, model)
        found = model.nearest(profile)
        assert found.user.tolist() == [u for _, _, u in nearest]
        assert found.overlap.tolist() == [n for _, n, _ in nearest]
        np.testing.assert_allclose(found.similarity, [s for s, _, _ in nearest], atol=1e-9)
        got, votes = model.predict(profile)
        np.testing.assert_allclose(got[0], predicted, atol=1e-6)
        assert ((votes[0] >= model.min_votes) == ~np.isnan(predicted)).all()


def test_many_users_pass_in_blocks() -> None:
    train = made_up(9000, 12, 0.6, seed=8)  # more than two blocks of 4,096
    model = Neighbours(k=30, shrinkage=5.0).fit(train)
    profile = made_up(1, 12, 0.8, seed=9).user_item
    assert model.nearest(profile).user.tolist() == [u for _, _, u in by_hand(train, profile, model)[0]]


@given(st.integers(0, 10_000), st.sampled_from([4 / 9, 0.5, 0.37]))
def test_a_profile_need_not_lie_on_the_grid(seed: int, step: float) -> None:
    """Points 1-10 mapped to 1-5 are 1 + 4/9 (v - 1): correlation does not care."""
    train = made_up(25, 12, 0.6, seed=1)
    rng = np.random.default_rng(seed)
    profile = csr_matrix((rng.random(12) < 0.8) * (1 + step * rng.integers(0, 9, 12)))
    model = Neighbours(k=25, min_overlap=2, min_votes=1).fit(train)
    nearest, _ = by_hand(train, profile, model)
    found = model.nearest(profile)
    # 32-bit ratings off the grid are not exact: similar users may swap places within 1e-6
    np.testing.assert_allclose(found.similarity, [s for s, _, _ in nearest], atol=1e-6)


def test_similarities_are_those_of_surprise() -> None:
    train = made_up(40, 30, 0.5, seed=11)
    by_item = {i: [(u, r) for u, r in zip(c.indices, c.data, strict=True)] for i in range(30)
               for c in [train.user_item.T.tocsr()[i]]}  # fmt: skip
    theirs = surprise.similarities.pearson(40, by_item, 5)
    found = Neighbours(k=39).fit(train).nearest(train.user_item[3])
    np.testing.assert_allclose(found.similarity, theirs[3, found.user], atol=1e-8)
    assert set(found.user) == set(np.flatnonzero(theirs[3] > 1e-9)) - {3}


def rows(*ratings: list[float]) -> Interactions:
    frame = pd.DataFrame(
        [(str(u), str(i), r) for u, row in enumerate(ratings) for i, r in enumerate(row) if r],
        columns=["user_id", "item_id", "rating"],
    )
    ids = [str(i) for i in range(max(map(len, ratings)))]
    return Interactions.from_frame(frame, scale=Scale(1, 5), items=ids)


def test_ties_go_to_the_larger_overlap_then_to_the_earlier_user() -> None:
    train = rows([1, 2, 3, 0, 5], [1, 2, 3, 0, 4], [1, 2, 3, 4, 5], [3, 2, 1, 0, 1])
    model = Neighbours(min_overlap=3).fit(train)
    found = model.nearest(csr_matrix([[1, 2, 3, 4, 0]]))
    assert found.user.tolist() == [2, 0, 1]  # all three at exactly 1, the last user at -1
    assert found.overlap.tolist() == [4, 3, 3]
    assert Neighbours(k=2, min_overlap=3).fit(train).nearest(csr_matrix([[1, 2, 3, 4, 0]])).user.tolist() == [2, 0]


def test_a_row_that_equals_the_profile_takes_no_place() -> None:
    train = rows([1, 2, 3, 0], [1, 2, 4, 5])
    assert Neighbours(k=1, min_overlap=3).fit(train).nearest(train.user_item[0]).user.tolist() == [1]


def test_too_few_votes_are_no_prediction() -> None:
    train = rows([1, 2, 3, 5, 4], [1, 2, 3, 4, 0], [1, 3, 5, 0, 0])
    profile = csr_matrix([[2, 3, 4, 0, 0]], dtype=np.float32)
    model = Neighbours(min_overlap=3, min_votes=2).fit(train)
    predicted, votes = model.predict(profile)
    assert votes.tolist() == [[3, 3, 3, 2, 1]]
    # both at similarity 1: 3 + ((5 - 3) + (4 - 2.5)) / 2
    assert predicted[0, 3] == pytest.approx(3 + ((5 - 3) + (4 - 2.5)) / 2)
    assert np.isnan(predicted[0, 4])
    assert model.scores(profile)[0, 4] == -np.inf
    assert model.ratings(profile)[0, 3:].tolist() == pytest.approx([4.75, 3.0])  # 3.0: the profile's own mean
    nobody = csr_matrix((1, 5), dtype=np.float32)
    assert model.ratings(nobody)[0] == pytest.approx(np.full(5, train.rating.mean()))
    assert isinstance(model, RatingPredictor)


def test_constant_ratings_have_no_similarity() -> None:
    train = rows([3, 3, 3, 3], [1, 2, 3, 4])
    assert Neighbours(min_overlap=3).fit(train).nearest(csr_matrix([[4, 4, 4, 0]])).user.size == 0
    third = 1 + 4 / 9  # a constant that 32 bits do not hold
    assert Neighbours(min_overlap=3).fit(train).nearest(csr_matrix([[third] * 3 + [0]])).user.size == 0


# ---- the store


def test_the_store_is_what_a_fit_holds_and_opens_mapped(tmp_path: Path) -> None:
    train = made_up(50, 30, 0.4, seed=6)
    shuffled = train.to_frame().sample(frac=1, random_state=1)
    shuffled.to_parquet(tmp_path / "ratings.parquet", row_group_size=100)
    fitted = Neighbours(k=9).fit(train)
    path = tmp_path / "ratings.parquet"
    prepared = Neighbours(k=9).prepare(path, list(train.users), list(train.items), train.scale, tmp_path / "store")
    fitted.save(tmp_path / "saved")
    for other in (prepared, Neighbours.open(tmp_path / "saved"), Neighbours.from_state(fitted.state())):
        assert all(np.array_equal(a, other.state()[name], equal_nan=a.dtype == float)
                   for name, a in fitted.state().items())  # fmt: skip
        assert np.array_equal(other.ratings(train.user_item), fitted.ratings(train.user_item))
    assert isinstance(prepared.rows.base, np.memmap)


def test_a_folder_without_a_store_and_unknown_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="store"):
        Neighbours.open(tmp_path)
    train = made_up(5, 5, 0.9, seed=6)
    train.to_frame().to_parquet(tmp_path / "r.parquet")
    with pytest.raises(InputError, match="item_id"):
        Neighbours().prepare(tmp_path / "r.parquet", list(train.users), ["0"], train.scale, tmp_path / "store")


def test_ratings_too_many_for_32_bits_take_64(tmp_path: Path) -> None:
    """Thousandths of a point take 13 bits (0-4,500), a million films 20, which leaves one user 33."""
    frame = pd.DataFrame({"user_id": "a", "item_id": ["0", "1", "1048575"], "rating": [0.5, 1.234, 5.0]})
    train = Interactions.from_frame(frame, scale=HALF_STARS, items=[str(i) for i in range(2**20)])
    model = Neighbours().fit(train)
    assert model.rows.dtype == np.uint64
    assert model.user_mean == pytest.approx((0.5 + 1.234 + 5) / 3)
    assert model.item_mean[-1] == pytest.approx(5)


def test_what_does_not_fit_into_memory_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(InputError, match="prepare"):
        Neighbours().fit(made_up(20, 20, 0.5, seed=1))


# ---- predictions and lists


def test_the_baseline_is_the_items_mean_and_the_users_offset() -> None:
    train = rows([1, 4, 0], [3, 5, 0], [0, 0, 3])
    profiles = vstack([csr_matrix([[3, 0, 0]]), csr_matrix((1, 3))]).tocsr()
    row, item = np.divmod(np.arange(6), 3)
    # means 2, 4.5, 3; the first profile is 3 - 2 = 1 above them; the second has no offset
    assert item_mean_and_offset(train, profiles, row, item).tolist() == [3, 5, 4, 2, 4.5, 3]


def test_pairs_are_predicted_in_blocks_and_settings_change_without_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    train = made_up(60, 30, 0.5, seed=2)
    model = Neighbours().fit(train).under(Neighbours(k=9, min_votes=1))
    assert (model.k, model.min_votes) == (9, 1)
    everything, votes = model.predict(train.user_item)
    row, item = np.random.default_rng(3).integers([60, 30], size=(200, 2)).T
    monkeypatch.setattr(neighbours, "CELLS", 7 * 30)
    found, counted = predict_pairs(model, train.user_item, row, item)
    assert np.array_equal(found, everything[row, item].astype(float), equal_nan=True)
    assert np.array_equal(counted, votes[row, item])


@pytest.fixture
def films() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "item_id": [str(i) for i in range(5)], "title": list("ABCDE"),
            "year": pd.array([1990, 1991, 1992, 1993, None]),
            "genres": [["Drama", "War"]] * 5, "directors": [["m.0bxtg"], ["X Y"], [], ["Z"], ["W"]],
            "actors": [["a", "b", "c", "d"]] * 5,
        }
    )  # fmt: skip


def test_a_list_leaves_out_what_was_rated_and_breaks_ties_by_votes(films: pd.DataFrame) -> None:
    # the first two users like D and E by 5 - 3.2 = 1.8, the third E by 4.4 - 2.6 = 1.8
    train = rows([1, 2, 3, 5, 5], [1, 2, 3, 5, 5], [1, 2, 3, 0, 4.4])
    model = Neighbours(min_overlap=3, min_votes=1).fit(train)
    profile = csr_matrix([[1, 2, 3, 0, 0]])
    listed = recommend(model, profile, films)
    assert listed["item_id"].tolist() == ["4", "3"]
    assert listed["votes"].tolist() == [3, 2]
    assert listed["rank"].tolist() == [1, 2]
    first = listed.iloc[0]
    assert (first["genres"], first["director"], first["cast"]) == ("Drama, War", "W", "a, b, c")
    assert listed["imdb_rating"].isna().all()
    assert recommend(model, profile, films, eligible=np.arange(5) == 3)["item_id"].tolist() == ["3"]
    assert recommend(model, csr_matrix([[0, 0, 0, 4, 5]]), films).empty  # two films in common are too few


def test_an_id_that_names_nobody_is_not_shown(films: pd.DataFrame) -> None:
    train = rows([1, 2, 3, 5, 5], [5, 1, 2, 3, 4])
    listed = recommend(Neighbours(min_overlap=3, min_votes=1).fit(train), csr_matrix([[0, 0, 1, 2, 3]]), films)
    assert dict(zip(listed["title"], listed["director"], strict=True)) == {"A": "", "B": "X Y"}


def test_good_films_by_imdb_and_else_by_the_data(films: pd.DataFrame) -> None:
    train = rows([5, 1, 5, 0, 0], [5, 1, 0, 0, 0], [5, 1, 0, 2, 0], [5, 0, 0, 2, 0])
    model = Neighbours().fit(train)
    imdb = films.assign(imdb_rating=[7.0, 6.9, None, 9, 9], imdb_votes=[10_000, 10**6, None, 9_999, 10_001])
    passed, said = good_films(model, imdb)
    assert passed.tolist() == [True, False, False, False, True]
    assert "80%" in said
    passed, said = good_films(model, films)
    # 53 % of the films by count: at least 1.9 of 4, 3, 1, 2, 0 ratings; 42 % by mean: at least 3 of 5, 1, 5, 2
    assert passed.tolist() == [True, False, False, False, False]
    assert "IMDb's are not at hand" in said


def test_a_file_is_answered_on_its_own_scale(films: pd.DataFrame, tmp_path: Path) -> None:
    train = rows([1, 2, 3, 5, 5], [1, 2, 3, 5, 5], [1, 2, 4, 5, 5])
    model = Neighbours(min_overlap=3, min_votes=1).fit(train)
    path = tmp_path / "mine.csv"
    path.write_text("title,year,rating\nA,1990,1\nB,1991,3.25\nC,1992,5.5\n", encoding="utf-8")
    own = own_ratings.read(path, films, train.scale, source_scale=Scale(1, 10))
    listed, said = recommend_by_neighbours(model, films, train.scale, own, explain=True)
    assert "scale 1-10" in said
    # 1, 3.25, 5.5 of 1-10 are 1, 2, 3 of 1-5: mean 2 + (5 - 3.2) = 3.8 from two neighbours at 1 and one at .98
    weights = np.array([1, 1, model.nearest(csr_matrix([[1, 2, 3, 0, 0]])).similarity[2]])
    on_ours = 2 + weights @ [1.8, 1.8, 1.6] / weights.sum()
    assert listed["predicted"].tolist() == pytest.approx([1 + (on_ours - 1) * 9 / 4] * 2, abs=1e-5)
    assert listed["item_id"].tolist() == ["3", "4"]
    gain = 1 + (on_ours - 1) * 9 / 4 - 3.25  # the mean of 1, 3.25, 5.5
    assert listed["contributions"].tolist() == [f"3.25 your mean {gain:+.2f} by 3 neighbours"] * 2


def test_the_ratings_of_a_store_can_be_read_back() -> None:
    train = rows([1, 2.5, 0, 5], [0, 4, 5, 5])
    assert sorted(Neighbours().fit(train).values.tolist()) == [1, 2.5, 4, 5, 5, 5]
