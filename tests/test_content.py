"""Content model: tokens stay whole, scores and explanations are the formulas', the ridge is scikit-learn's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from sklearn.linear_model import Ridge
from sklearn.metrics.pairwise import cosine_similarity

from recsys_utils.base import InputError, Recommender, Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.models.content import ContentModel, GenreRidge, Tfidf, analyse, soup

SCALE = Scale(1, 5)


def ratings_of(items: pd.DataFrame, matrix: np.ndarray) -> Interactions:
    user, item = np.nonzero(matrix)
    frame = pd.DataFrame(
        {"user_id": [f"u{u}" for u in user], "item_id": items["item_id"].to_numpy()[item], "rating": matrix[user, item]}
    )
    return Interactions.from_frame(
        frame, scale=SCALE, items=items["item_id"], users=[f"u{u}" for u in range(len(matrix))]
    )


@pytest.fixture(scope="module")
def films() -> pd.DataFrame:
    rng = np.random.default_rng(4)
    genres = np.array(["Action", "Sci-Fi", "Film-Noir", "Children's", "Drama"])
    people = np.array([f"m.{i:03d}" for i in range(40)])
    return pd.DataFrame(
        {
            "item_id": [str(i) for i in range(60)],
            "genres": [list(rng.choice(genres, rng.integers(1, 4), replace=False)) for _ in range(60)],
            "directors": [[rng.choice(people)] for _ in range(60)],
            "actors": [list(rng.choice(people, 4, replace=False)) for _ in range(60)],
        }
    )


@pytest.fixture(scope="module")
def ratings(films: pd.DataFrame) -> Interactions:
    rng = np.random.default_rng(5)
    return ratings_of(films, rng.integers(1, 6, (30, 60)) * (rng.random((30, 60)) < 0.3))


def test_soup_joins_names_and_takes_leads_only_where_order_means_something() -> None:
    film = pd.DataFrame(
        {"directors": [["Ridley Scott"]], "actors": [["A", "B", "C", "D"]], "keywords": [["space  ship"]]}
    )
    fields = ["directors", "keywords", "actors", "writers"]  # no column of writers: skipped
    start = ["director:Ridley_Scott", "keyword:space_ship"]
    assert soup(film, fields, has_billing_order=True) == [[*start, "actor:A", "actor:B", "actor:C"]]
    assert soup(film, fields, has_billing_order=False) == [[*start, "actor:A", "actor:B", "actor:C", "actor:D"]]
    assert soup(film, fields, cast="none", has_billing_order=True) == [start]


def test_soup_counts_a_name_once_per_field_but_once_in_each() -> None:
    film = pd.DataFrame({"directors": [["X"]], "actors": [["X", "X"]]})
    assert soup(film, ["directors", "actors"]) == [["director:X", "actor:X"]]


def test_soup_names_the_unknown_field_and_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"genre;.*known are genres, keywords"):
        soup(pd.DataFrame({"genres": [["War"]]}), ["genre"])
    with pytest.raises(InputError, match="cast must be"):
        soup(pd.DataFrame({"genres": [["War"]]}), cast="some")  # type: ignore[arg-type]


def test_typed_tokens_stay_whole_and_no_pair_crosses_a_field() -> None:
    film = pd.DataFrame(
        {"genres": [["Sci-Fi"]], "directors": [["m.0bxtg"]], "actors": [["The The"]], "overview": ["The dark city"]}
    )
    terms = list(analyse(soup(film)[0]))
    # "the" is a stop word in the overview, and half of a band's name in the cast
    overview = ["overview:dark", "overview:city", "overview:dark city"]
    assert terms == ["genre:Sci-Fi", "director:m.0bxtg", "actor:The_The", *overview]


def test_tfidf_of_three_films_by_hand() -> None:
    tfidf = Tfidf().fit([["genre:War", "director:a"], ["genre:War"], ["director:b"]])
    idf_war = 1 + np.log((1 + 3) / (1 + 2))  # 3 films, 2 of them War
    idf_a = 1 + np.log((1 + 3) / (1 + 1))
    length = np.hypot(idf_war, idf_a)
    assert tfidf.tokens.tolist() == ["director:a", "director:b", "genre:War"]
    expected = [[idf_a / length, 0, idf_war / length], [0, 0, 1], [0, 1, 0]]
    np.testing.assert_allclose(tfidf.vectors.toarray(), expected, atol=1e-6)


@pytest.mark.parametrize(("n_films", "kept"), [(99, True), (100, False)])
def test_a_term_of_one_film_is_kept_on_small_corpora_only(n_films: int, kept: bool) -> None:
    documents = [[f"genre:{i % 7}"] for i in range(n_films - 1)] + [["genre:0", "director:once"]]
    assert ("director:once" in Tfidf().fit(documents).tokens) is kept


def test_single_occurrences_are_kept_where_nothing_else_would_be_left() -> None:
    assert len(Tfidf().fit([[f"director:{i}"] for i in range(150)]).tokens) == 150


def test_a_term_of_more_than_four_fifths_of_the_films_is_dropped() -> None:
    documents = [["genre:all", f"genre:{i % 2}"] for i in range(10)]
    assert Tfidf().fit(documents).tokens.tolist() == ["genre:0", "genre:1"]
    assert Tfidf().fit([["genre:all"]] * 10).tokens.tolist() == ["genre:all"]  # unless it is all there is


def test_the_vocabulary_keeps_the_most_frequent_terms() -> None:
    documents = [["genre:often", f"director:{i}"] for i in range(5)] + [["genre:rare"]] * 2
    assert Tfidf(max_features=2).fit(documents).tokens.tolist() == ["genre:often", "genre:rare"]


def test_of_equally_frequent_terms_the_first_in_the_alphabet_are_kept() -> None:
    names = [f"{a}{b}" for a in "qwertyuiopasdfghjklzxcvbnm" for b in "etaoinshrdlu"]  # 312: too many to sort by chance
    documents = [[f"actor:{name}" for name in names], [f"actor:{name}" for name in reversed(names)]]
    kept = Tfidf(max_features=100).fit(documents).tokens.tolist()
    assert kept == sorted(f"actor:{name}" for name in names)[:100]


def test_films_without_metadata_are_an_input_error() -> None:
    with pytest.raises(InputError, match="None of the 2 films"):
        Tfidf().fit([[], []])


def test_score_of_two_likes_by_hand() -> None:
    films = pd.DataFrame({"item_id": list("abcd"), "genres": [["War"], ["Love"], ["War"], ["Noir"]]})
    data = ratings_of(films, np.array([[5, 4, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0]]))
    model = ContentModel(films, ["genres"]).fit(data)
    assert isinstance(model, Recommender)
    # orthogonal genres: the profile is (5, 4) / 9 in (War, Love), of length sqrt(5^2 + 4^2) / 9
    war, love = 5 / np.sqrt(41), 4 / np.sqrt(41)
    np.testing.assert_allclose(model.scores(data.user_item), [[war, love, war, 0], [0] * 4, [0] * 4], atol=1e-6)
    assert model.explain(data.user_item[0], 3) == []
    assert [film for film, _ in model.explain_by_film(data.user_item[0], 2)] == [0]


def test_scores_are_scikit_learns_cosines(films: pd.DataFrame, ratings: Interactions) -> None:
    model = ContentModel(films).fit(ratings)
    liked = ratings.user_item.toarray() * (ratings.user_item.toarray() >= 4)
    expected = cosine_similarity(liked @ model.vectors.toarray(), model.vectors.toarray())
    np.testing.assert_allclose(model.scores(ratings.user_item), expected, atol=1e-6)


def test_explanations_add_up_to_the_score(films: pd.DataFrame, ratings: Interactions) -> None:
    model = ContentModel(films).fit(ratings)
    scores = model.scores(ratings.user_item)
    for user, item in [(0, 3), (7, 59), (29, 0)]:
        profile = ratings.user_item[user]
        tokens, by_film = model.explain(profile, item), model.explain_by_film(profile, item)
        assert sum(w for _, w in tokens) == pytest.approx(scores[user, item], abs=1e-6)
        assert sum(w for _, w in by_film) == pytest.approx(scores[user, item], abs=1e-6)
        assert [w for _, w in tokens] == sorted((w for _, w in tokens), reverse=True)
        assert {t for t, _ in tokens} <= set(analyse(soup(films)[item]))
        assert {f for f, _ in by_film} <= set(profile.indices[profile.data >= 4].tolist())


def test_nearest_leaves_out_the_film_and_breaks_ties_by_position() -> None:
    films = pd.DataFrame({"item_id": list("abcd"), "genres": [["War"], ["Love"], ["War"], ["War"]]})
    model = ContentModel(films, ["genres"])
    assert model.nearest(2, k=3) == [(0, 1.0), (3, 1.0), (1, 0.0)]


def test_state_rebuilds_the_model_without_pickle(films: pd.DataFrame, ratings: Interactions) -> None:
    model = ContentModel(films).fit(ratings)
    state = model.state()
    assert all(isinstance(a, np.ndarray) and a.dtype != object for a in state.values())
    again = ContentModel.from_state(state)
    np.testing.assert_array_equal(again.scores(ratings.user_item), model.scores(ratings.user_item))
    assert again.explain(ratings.user_item[0], 3) == model.explain(ratings.user_item[0], 3)


def test_genre_ridge_is_scikit_learns_per_user(films: pd.DataFrame, ratings: Interactions) -> None:
    withheld = np.arange(60) % 5 == 0
    train = ratings.where(~withheld[ratings.item])
    model = GenreRidge(films, reg=3.0).fit(train)
    genres = pd.get_dummies(films["genres"].explode()).groupby(level=0).max().to_numpy(dtype=float)
    expected = np.empty((30, 60))
    for user in range(30):
        likes = (train.user_item[user].toarray().ravel() >= 4).astype(float)
        peer = Ridge(alpha=3.0).fit(genres[~withheld], likes[~withheld])
        expected[user] = peer.predict(genres) - peer.predict(genres[~withheld]).mean()  # the intercept ranks nothing
    np.testing.assert_allclose(model.scores(train.user_item), expected, atol=1e-6)


def test_a_catalogue_in_another_order_is_refused(films: pd.DataFrame, ratings: Interactions) -> None:
    for model in (ContentModel(films[::-1]), GenreRidge(films[::-1])):
        with pytest.raises(ValueError, match="same order"):
            model.fit(ratings)


def test_no_rating_changes_a_content_score(films: pd.DataFrame, ratings: Interactions) -> None:
    """Canary: a content model that peeked at ratings would not be fair on cold items."""
    half = ratings.of_users(np.arange(15))
    profile = csr_matrix(ratings.user_item[20])
    full_fit, half_fit = ContentModel(films).fit(ratings), ContentModel(films).fit(half)
    np.testing.assert_array_equal(full_fit.scores(profile), half_fit.scores(profile))
