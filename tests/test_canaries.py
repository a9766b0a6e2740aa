"""Leaks planted on purpose: each is caught by its guard, and does harm once the guard is gone.

Every canary has the two halves that make a guard worth having: with it the planted leak raises; without it the leak
passes unnoticed or, where a model can use it at once, gives numbers better than an honest evaluation's.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from blind import check_blind
from scipy.sparse import csr_matrix

from recsys_utils.base import Scale, Scores
from recsys_utils.data.interactions import Interactions
from recsys_utils.data.synthetic import generate
from recsys_utils.evaluation import metrics, protocols
from recsys_utils.evaluation.protocols import Case, LeakError
from recsys_utils.models.rankers import Popularity

N_USERS, N_ITEMS = 120, 150


def unpredictable() -> Interactions:
    """Users who rate 40 films, drawn and liked at random, in four sessions: nothing but a leak can predict well."""
    rng = np.random.default_rng(17)
    rating = rng.choice([2.0, 5.0], N_USERS * 40).astype(np.float32)
    user = np.repeat(np.arange(N_USERS), 40)
    item = np.concatenate([rng.choice(N_ITEMS, 40, replace=False) for _ in range(N_USERS)])
    session = np.tile(np.repeat(np.arange(4), 10), N_USERS)
    stamp = 1_000_000 + session * 86_400 * 3 + np.tile(np.arange(40), N_USERS) * 30
    ids = [np.array([f"{kind}{i}" for i in range(n)], dtype=object) for kind, n in (("u", N_USERS), ("i", N_ITEMS))]
    return Interactions(*ids, user.astype(np.int32), item.astype(np.int32), rating, stamp.astype(np.int64), Scale(1, 5))


DATA = unpredictable()
SPLITS, USERS, FOLDS = protocols.make_splits(DATA, seed=3)
TEST = SPLITS["last20"].to_numpy()


def no_guard(*_: object) -> None:
    """What is left of a guard that somebody removed."""


def ndcg(scores: np.ndarray, case: Case) -> float:
    return float(protocols.rank_and_measure(scores.astype(np.float32), case)["ndcg@10"].mean())


def likes_of(train: Interactions, case: Case) -> np.ndarray:
    """A model that has learned by heart which films each user of the case likes."""
    return train.liked_item[case.users].toarray()


def popularity(train: Interactions) -> np.ndarray:
    return np.bincount(train.item, train.rating >= train.scale.liked, minlength=N_ITEMS)


@pytest.fixture
def honest() -> Case:
    return protocols.warm_split(DATA, TEST, time_ordered=True)


def test_target_as_feature(honest, monkeypatch):
    def plant() -> Case:
        return replace(honest, profiles=honest.profiles + honest.relevant)

    with pytest.raises(LeakError, match="in the profile"):
        plant()
    monkeypatch.setattr(protocols, "check_profiles", no_guard)
    assert (plant().profiles != honest.profiles).nnz == honest.relevant.nnz


def test_test_ratings_in_the_training_part(honest, monkeypatch):
    def plant() -> Case:
        return replace(honest, train=DATA)

    with pytest.raises(LeakError, match="in the training part"):
        plant()
    monkeypatch.setattr(protocols, "check_train", no_guard)
    assert ndcg(likes_of(honest.train, honest), honest) < 0.1
    assert ndcg(likes_of(plant().train, honest), plant()) > 0.99


def test_future_ratings_in_a_profile(monkeypatch):
    """The order is turned round, so that profiles hold the last ratings and targets the first."""
    backwards = SPLITS.assign(position_time=39 - SPLITS["position_time"])

    def plant() -> Case:
        return next(protocols.profile_size_cases(DATA, backwards, USERS, 0, order="time", sizes=[10]))

    with pytest.raises(LeakError, match="after their first target"):
        plant()
    monkeypatch.setattr(protocols, "check_time_order", no_guard)
    leaky = plant()
    last_ten = DATA.where(SPLITS["position_time"].to_numpy() >= 30).user_item[leaky.users]
    assert (leaky.profiles != last_ten).nnz == 0


def test_time_stamps_shuffled_within_sessions(monkeypatch):
    """Whoever shuffles the stamps after the split has profiles that reach into the target's time."""
    rng = np.random.default_rng(5)
    session = DATA.timestamp // 86_400 + DATA.user.astype(np.int64) * 1_000
    shuffled = DATA.timestamp.copy()
    for number in np.unique(session):
        rows = np.flatnonzero(session == number)
        shuffled[rows] = shuffled[rng.permutation(rows)]
    data = replace(DATA, timestamp=shuffled)

    def plant() -> Case:
        return protocols.warm_split(data, TEST, time_ordered=True)

    with pytest.raises(LeakError, match="after their first target"):
        plant()
    monkeypatch.setattr(protocols, "check_time_order", no_guard)
    assert plant().users.size == N_USERS


def test_test_users_in_the_fit(monkeypatch):
    honest = next(protocols.profile_size_cases(DATA, SPLITS, USERS, 0, order="random_0", sizes=[20]))
    fit = protocols.fold_users(USERS, 0).fit
    place = SPLITS["position_random_0"].to_numpy()

    def plant(train: Interactions) -> Case:
        return replace(honest, train=train)

    # not one target rating in training, yet the model has met the users: only the rule about new users can object
    met = DATA.where(np.isin(DATA.user, fit) | (place < 20))
    with pytest.raises(LeakError, match="test user"):
        plant(met)
    with pytest.raises(LeakError):
        plant(DATA)
    monkeypatch.setattr(protocols, "check_new_users", no_guard)
    assert np.isin(plant(met).train.user, honest.users).any()
    monkeypatch.setattr(protocols, "check_train", no_guard)
    assert ndcg(likes_of(honest.train, honest), honest) < 0.1
    assert ndcg(likes_of(plant(DATA).train, honest), honest) > 0.99


def test_withheld_films_in_the_training_part(monkeypatch):
    honest = protocols.cold_item_case(DATA, FOLDS, 0)
    some_user = DATA.user == honest.users[0]
    withheld = FOLDS["fold"].to_numpy()[DATA.item] == 0
    others = replace(honest, users=honest.users[1:], profiles=honest.profiles[1:], relevant=honest.relevant[1:],
                     relevant_any=honest.relevant_any[1:])  # fmt: skip

    def plant() -> Case:  # one user's ratings of withheld films come back; that user is not tested
        return replace(others, train=DATA.where(~withheld | some_user))

    with pytest.raises(LeakError, match="withheld films"):
        plant()
    monkeypatch.setattr(protocols, "check_new_items", no_guard)
    assert plant().candidates[plant().train.item].any()


class Informer:
    """Knows which of two withheld films every user has rated, and that this tells their taste in all others."""

    name = "informer"

    def fit(self, train: Interactions) -> Informer:
        return self

    def scores(self, profiles: csr_matrix) -> Scores:
        hidden = np.flatnonzero(FOLDS["fold"] == 0)[:2]
        return np.asarray(profiles[:, hidden].toarray() @ np.eye(2)[:, np.arange(N_ITEMS) % 2] / 5, np.float32)


def test_a_soup_chosen_with_ratings_of_the_withheld_films(monkeypatch):
    hidden = np.flatnonzero(FOLDS["fold"] == 0)[:2]
    taste = np.where(np.isin(DATA.item, hidden), hidden[DATA.user % 2] == DATA.item, DATA.item % 2 == DATA.user % 2)
    told = replace(DATA, rating=np.where(taste, 5, 1).astype(np.float32)).where(taste | ~np.isin(DATA.item, hidden))
    models = {"chance": Popularity().fit(told.where(told.item < 0)), "informer": Informer()}
    assert protocols.best_on_other_items(models, told, FOLDS, 0) == "chance"
    assert protocols.best_on_other_items(models, told, FOLDS, 1) == "informer"
    sees_all = protocols.cold_item_case
    monkeypatch.setattr(protocols, "cold_item_case", lambda *of, hidden: sees_all(*of))
    assert protocols.best_on_other_items(models, told, FOLDS, 0) == "informer"


def test_a_catalogue_numbered_by_popularity_lends_none_to_ties():
    """A model that gives every film the same score must do as well as chance, in whatever order the films stand."""
    made = generate()
    by_popularity = made.ratings["item_id"].value_counts().index
    data = Interactions.from_frame(made.ratings, scale=Scale(1, 5), items=by_popularity)
    folds = protocols.make_splits(data, seed=2, random_orders=1, stratified_seeds=1)[2]
    case = protocols.cold_item_case(data, folds, 0)

    def value(lists: metrics.Lists) -> float:
        return float(protocols.measure(lists, case)["ndcg@10"].mean())

    same = np.zeros(case.profiles.shape, np.float32)
    rng = np.random.default_rng(4)
    chance = [value(protocols.rank_lists(np.tile(rng.random(len(data.items), np.float32), (len(same), 1)), case))
              for _ in range(200)]  # fmt: skip
    assert np.quantile(chance, 0.01) < value(protocols.rank_lists(same, case)) < np.quantile(chance, 0.99)
    planted = metrics.top_k(same, case.profiles, 10, case.candidates)  # ties in the catalogue's order
    assert value(planted) > np.quantile(chance, 0.99)


def test_popularity_counted_on_test_ratings(honest, monkeypatch):
    genres = [["Drama"]] * N_ITEMS
    lists = protocols.rank_lists(np.tile(popularity(honest.train), (N_USERS, 1)), honest)
    leaky = metrics.ItemTraits.of(DATA, genres)
    with pytest.raises(LeakError, match="popularity"):
        protocols.measure(lists, honest, traits=leaky)
    monkeypatch.setattr(protocols, "check_counts", no_guard)
    told = protocols.measure(lists, honest, traits=metrics.ItemTraits.of(honest.train, genres))
    leaked = protocols.measure(lists, honest, traits=leaky)
    assert not np.allclose(told["novelty@10"], leaked["novelty@10"])


def test_a_model_that_ranks_by_test_popularity():
    """No case can see a closure over the whole data; only running the evaluation again on other targets can."""

    def run(data: Interactions, test: np.ndarray) -> np.ndarray:
        return popularity(data.where(~test))

    def leaking(data: Interactions, test: np.ndarray) -> np.ndarray:
        return popularity(data.where(test))

    check_blind(run, DATA, TEST)
    with pytest.raises(LeakError, match="scores change"):
        check_blind(leaking, DATA, TEST)
    case = protocols.warm_split(DATA, TEST)
    honest, leaked = (np.tile(score(DATA, TEST), (N_USERS, 1)) for score in (run, leaking))
    assert ndcg(leaked, case) > 1.5 * ndcg(honest, case)


def test_tuned_on_test(honest):
    """The best of a hundred random rankings, chosen where it is reported, looks like knowledge."""
    rankings = np.random.default_rng(8).random((100, N_ITEMS))
    inner = protocols.validation_mask(DATA, TEST, SPLITS["position_time"])
    tuned_on = protocols.warm_split(DATA, inner, hidden=TEST, time_ordered=True)

    def chosen_on(case: Case) -> np.ndarray:
        protocols.check_tuning(case, honest)
        return best_for(case)

    def best_for(case: Case) -> np.ndarray:
        return max((np.tile(r, (N_USERS, 1)) for r in rankings), key=lambda scores: ndcg(scores, case))

    with pytest.raises(LeakError, match="chosen on"):
        chosen_on(honest)
    fair, leaked = ndcg(chosen_on(tuned_on), honest), ndcg(best_for(honest), honest)
    assert leaked > 1.2 * fair

    def run(data: Interactions, test: np.ndarray) -> np.ndarray:
        return best_for(protocols.warm_split(data, test))

    with pytest.raises(LeakError, match="scores change"):
        check_blind(run, DATA, TEST)


# ---- ranking-time


def test_a_model_that_knows_what_came_after_the_session_began(monkeypatch):
    """No target is in the training part, but other users' later ratings are: only the clock can object."""
    timeline = protocols.Timeline(DATA)
    first = timeline.returns.query("user == 0 and session == 1")
    moment = int(first["start"].iloc[0])
    monkeypatch.setattr(protocols.Timeline, "before", lambda self, _: DATA.where(DATA.user != 0))
    with pytest.raises(LeakError, match="not older than the moment"):
        timeline.case(first, moment)
    monkeypatch.setattr(protocols, "check_cut", no_guard)
    assert (timeline.case(first, moment).train.timestamp >= moment).any()


def test_a_profile_that_knows_later_sessions():
    """Sessions are numbered from the last, so that each is predicted from those after it."""

    def plant() -> Case:
        timeline = protocols.Timeline(DATA)
        timeline.__dict__["session"] = 3 - protocols.sessions(DATA)
        return timeline.case(timeline.returns, int(DATA.timestamp.min()))

    with pytest.raises(LeakError, match="after their first target"):
        plant()
    with pytest.MonkeyPatch.context() as removed:
        removed.setattr(protocols, "check_time_order", no_guard)
        assert plant().profiles.nnz > 0
