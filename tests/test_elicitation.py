"""Questions to new users: every strategy's order by hand, the adaptive one against linear algebra, honest answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from recsys_study.elicitation import Adaptive, answered, question_orders, simulate
from recsys_study.interview import interview
from recsys_utils.base import InputError, Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.data.synthetic import generate
from recsys_utils.evaluation.protocols import Case, LeakError, make_splits, profile_size_cases
from recsys_utils.models.rankers import EASE
from recsys_utils.models.surprise_models import SVD
from recsys_utils.personal import own_ratings


def ratings(rows: list[tuple[str, str, float]]) -> Interactions:
    return Interactions.from_frame(pd.DataFrame(rows, columns=["user_id", "item_id", "rating"]), scale=Scale(1, 5))


@pytest.fixture(scope="module")
def toy() -> Interactions:
    """4 users; a: everybody, divided; b: 3 users, agreed; c: 2 users, divided; d: nobody but one."""
    values = {"a": (1, 5, 1, 5), "b": (4, 4, 4), "c": (1, 5), "d": (5,)}
    return ratings([(f"u{u}", item, value) for item, given in values.items() for u, value in enumerate(given, 1)])


def test_orders_by_hand(toy: Interactions) -> None:
    orders = question_orders(toy, 4, seed=0)
    assert orders["popularity"].tolist() == [0, 1, 2, 3]  # 4, 3, 2, 1 users
    # log n * H: a log 4 * log 2, c log 2 * log 2; b and d have no spread, the lower index first
    assert orders["popularity x entropy"].tolist() == [0, 2, 1, 3]
    assert orders["helf"].tolist() == [0, 2, 1, 3]
    # entropy0 without the common factor, -sum w p log p with w = .5 for missing:
    # a: log 2 = .69; b: .5 * .25 log 4 + .75 log(4/3) = .39; c: .5 * .5 log 2 + .5 log 4 = .87;
    # d: .5 * .75 log(4/3) + .25 log 4 = .45
    assert orders["entropy0"].tolist() == [2, 0, 3, 1]
    assert sorted(orders["random"].tolist()) == [0, 1, 2, 3]
    assert (question_orders(toy, 4, seed=0)["random"] == orders["random"]).all()


def test_groups_take_turns() -> None:
    """Two films of each of two groups: the most popular of each first, then the second of each."""
    rows = [(f"u{u}", f"i{i}", 3.0) for i in range(16) for u in range(20 - i)]  # i0 is the most popular
    factors = np.array([[100.0 * (i // 2), 0.1 * i] for i in range(16)])  # eight clear pairs
    orders = question_orders(ratings(rows), 16, seed=0, factors=factors)
    assert orders["groups"].tolist() == [*range(0, 16, 2), *range(1, 16, 2)]


def brute_force(model: Adaptive, knows: set[int], length: int, *, learn: bool = True) -> list[int]:
    """Posterior covariances by inverting precisions and one joint conditional, written independently of the kernel."""
    places, answers, asked = range(len(model.items)), list[int](), list[int]()
    for _ in range(length):
        precision = np.diag(1 / model.prior)
        for place in answers:
            precision += np.outer(model.design[place], model.design[place]) / model.noise
        spread = np.linalg.inv(precision)
        chance = model.know
        if asked:
            seen = np.isin(asked, answers) - model.know[asked]
            chance = chance + model.together[:, asked] @ np.linalg.solve(model.together[np.ix_(asked, asked)], seen)
        worth = []
        for m in places:
            own = model.design[m]
            gain = (own @ spread @ model.target @ spread @ own) / (own @ spread @ own + model.noise) if learn else 1.0
            worth.append(-np.inf if m in asked else max(chance[m], 1e-4) * gain)
        asked.append(int(np.argmax(worth)))
        if int(model.items[asked[-1]]) in knows:
            answers.append(asked[-1])
    return [int(model.items[m]) for m in asked]


def adaptive(seed: int = 0, items: int = 30, width: int = 4) -> Adaptive:
    rng = np.random.default_rng(seed)
    train = ratings(
        [(f"u{u}", f"i{i}", float(rng.integers(1, 6))) for u in range(25) for i in range(items) if rng.random() < 0.3]
    )
    return Adaptive.of(train, rng.normal(size=(train.shape[1], width)), rng.uniform(0.2, 1, width + 1), 0.7)


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_adaptive_questions_agree_with_linear_algebra(seed: int, learn: bool) -> None:
    model = adaptive(seed)
    rng = np.random.default_rng(seed + 100)
    known = csr_matrix(rng.random((5, 30)) < 0.4)
    asked = model.ask(known, 12, learn=learn)
    for user in range(5):
        assert asked[user].tolist() == brute_force(model, set(known[user].indices.tolist()), 12, learn=learn)


def test_one_question_at_a_time_gives_the_same_questions() -> None:
    model, knows = adaptive(), {3, 7, 8, 20}
    known = csr_matrix((np.ones(4), (np.zeros(4, int), sorted(knows))), shape=(1, 30))
    asked: list[int] = []
    for _ in range(10):
        answers = [item for item in asked if item in knows]
        so_far = csr_matrix((np.ones(len(answers)), (np.zeros(len(answers), int), answers)), shape=(1, 30))
        asked.append(int(model.ask(so_far, len(asked) + 1)[0][-1]))
    assert asked == model.ask(known, 10)[0].tolist()


def test_what_is_known_leads_to_what_is_known_with_it() -> None:
    """Two tastes that never meet: who knows one item of the first is asked the others of the first."""
    rows = [(f"a{u}", f"x{i}", 4.0) for u in range(10) for i in range(5)] + [("b0", "y0", 4.0)]
    rows += [(f"b{u}", f"y{i}", 4.0) for u in range(11) for i in range(5) if (u, i) != (0, 0)]
    train = ratings(rows)
    model = Adaptive.of(train, np.ones((10, 1)), np.ones(2), 1.0)
    likes_x = csr_matrix(([1.0] * 5, ([0] * 5, [list(train.items).index(f"x{i}") for i in range(5)])), shape=(1, 10))
    names = [train.items[i] for i in model.ask(likes_x, 6, learn=False)[0]]
    assert names[0].startswith("y")  # eleven users against ten
    assert sorted(names[1:]) == [f"x{i}" for i in range(5)]


def test_the_variance_of_predictions_falls_fastest_by_asking_what_is_chosen() -> None:
    """Where everybody knows everything, the first question is the one that lowers the target's variance most."""
    model = adaptive()
    sure = replace(model, know=np.ones_like(model.know))
    first = sure.ask(csr_matrix((1, 30)), 1)[0, 0]

    def left(place: int) -> float:
        own = sure.design[place]
        return float(np.trace(sure.target @ np.linalg.inv(np.diag(1 / sure.prior) + np.outer(own, own) / sure.noise)))

    assert sure.items[int(np.argmin([left(m) for m in range(len(sure.items))]))] == first


@pytest.fixture(scope="module")
def case() -> Case:
    made = generate()
    data = Interactions.from_frame(made.ratings, scale=Scale(1, 5), items=made.items["item_id"])
    splits, users, _ = make_splits(data, seed=1, random_orders=1, stratified_seeds=1)
    (found,) = profile_size_cases(data, splits, users, 0, order="random_0", sizes=[None])
    return found


def test_answers_are_what_was_asked_and_known(case: Case) -> None:
    asked = np.array([0, 5, 9], np.int32)
    now = answered(case, asked)
    assert set(now.profiles.indices.tolist()) <= {0, 5, 9}
    dense, everything = now.profiles.toarray(), case.profiles.toarray()
    np.testing.assert_array_equal(dense[:, asked], everything[:, asked])
    each = np.tile(asked, (len(case.users), 1))
    np.testing.assert_array_equal(answered(case, each).profiles.toarray(), dense)


def test_a_profile_that_holds_targets_can_not_be_simulated(case: Case) -> None:
    """The canary of elicitation: users who could answer about their target would be predicted from it."""
    with pytest.raises(LeakError):
        replace(case, profiles=(case.profiles + case.relevant_any).tocsr())


def test_all_questions_give_the_whole_profile_and_more_never_fewer_answers(case: Case) -> None:
    n_items = case.profiles.shape[1]
    svd, ease = SVD(n_factors=3, n_epochs=30, lr=0.02).fit(case.train), EASE(reg=50.0).fit(case.train)
    orders = {"popularity": question_orders(case.train, n_items, 0)["popularity"]}
    table = simulate(case, orders, [0, 10, n_items], svd, ease)
    by = table.pivot_table(index="user_id", columns="questions", values="answers")
    np.testing.assert_array_equal(by[n_items].loc[case.user_ids], np.diff(case.profiles.indptr))
    assert (by[0] == 0).all()
    assert (by[10] <= by[n_items]).all()
    error = table.groupby("questions")[["squared", "count"]].sum()
    assert error["squared"][n_items] / error["count"][n_items] < error["squared"][0] / error["count"][0]


def answers(*given: str):
    """A person who gives these answers, and the questions they were asked."""
    asked: list[str] = []

    def ask(question: str) -> str:
        asked.append(question)
        return given[len(asked) - 1]

    return ask, asked


def test_an_interview_keeps_every_answer_and_can_be_continued(tmp_path: Path) -> None:
    films = pd.DataFrame(
        {"item_id": ["1", "2", "3", "4"], "title": ["A, B", "C", "D", "E"], "year": [1999, None, 2001, 2002]}
    ).astype({"year": "Int64"})
    out = tmp_path / "mine.csv"
    ask, asked = answers("7", "five", "4", "", "q")  # off the scale, no number, a rating; not known; enough
    assert interview(films, Scale(1, 5), out, ask) == 1
    assert asked[0] == asked[1] == asked[2]
    assert asked[0].startswith("1/4  A, B (1999): 1 to 5")
    assert asked[3].startswith("2/4  C: ")
    assert out.read_text() == 'item_id,title,year,rating\n1,"A, B",1999,4\n'
    ask, asked = answers("3", "", "2.5")
    assert interview(films, Scale(1, 5), out, ask) == 3
    assert asked[0].startswith("1/3  C")
    assert pd.read_csv(out)["rating"].tolist() == [4, 3, 2.5]


def test_the_answers_are_a_ratings_file(tmp_path: Path) -> None:
    films = pd.DataFrame({"item_id": ["1", "2"], "title": ["Toy Story", "GoldenEye"], "year": [1995, 1995]})
    ask, _ = answers("5", "2")
    interview(films, Scale(1, 5), tmp_path / "mine.csv", ask)
    catalogue = films.assign(genres=[[], []], imdb_id=None, tmdb_id=None)
    own = own_ratings.read(str(tmp_path / "mine.csv"), catalogue, Scale(1, 5))
    assert own.profile(["1", "2"]).toarray().tolist() == [[5, 2]]


def test_an_interview_does_not_write_over_something_else(tmp_path: Path) -> None:
    out = tmp_path / "letters.csv"
    out.write_text("dear,diary\n1,2\n")
    with pytest.raises(InputError, match="earlier interview"):
        interview(pd.DataFrame({"item_id": [], "title": [], "year": []}), Scale(1, 5), out, lambda _: "q")
    assert out.read_text() == "dear,diary\n1,2\n"
