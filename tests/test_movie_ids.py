"""What a join by id does, on films whose right counterpart is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from recsys_study.movie_ids import cold_content, genre_neighbours, join_by_id
from recsys_utils.base import Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.models.content import FIELDS

IDS, TITLES = ["1", "29", "260"], ["Toy Story", "Star Wars", "Fear"]
FILMS = pd.DataFrame({"item_id": IDS, "title": TITLES, "year": [1995, 1977, 1996]})
CROSSWALK = pd.DataFrame({"item_id": ["1", "29", "260"], "movieId": ["1", "260", None]})
LATER = pd.DataFrame({"item_id": ["1", "260", "29"], "genres": [["Animation"], ["Animation", "Sci-Fi"], ["War"]]})


def test_every_rating_of_a_join_by_id_is_on_the_right_film_another_or_none() -> None:
    crosswalk = pd.concat([CROSSWALK, pd.DataFrame({"item_id": ["5"], "movieId": ["29"]})])
    joined = join_by_id(crosswalk, LATER, pd.Series(["1", "29", "29", "5"])).set_index("join")
    # 1 is Toy Story in both; 29 is another film there; nothing there is 5
    assert joined["ratings"].to_dict() == {"the right film": 1, "another film": 2, "no film": 1}
    assert joined["share_of_ratings"].tolist() == [1 / 4, 2 / 4, 1 / 4]


def test_neighbours_change_when_the_genres_are_another_films() -> None:
    # right: Star Wars shares a genre with Toy Story, Fear has none; joined: 29 and 260 have each other's
    lists = genre_neighbours(FILMS, CROSSWALK, LATER, n=1)
    assert lists["like Toy Story (1995)"].tolist() == ["Star Wars (1977)"]
    assert lists["joined by id"].tolist() == ["Fear (1996)"]


def test_the_right_genres_rank_cold_films_and_anothers_do_not() -> None:
    """Camps like the even or the odd films. By movieId a film's genre is its camp; by number all borrow one."""
    rows = [(f"u{u}", str(i), 5.0 if i % 2 == u % 2 else 1.0) for u in range(4) for i in range(24)]
    frame = pd.DataFrame(rows, columns=["user_id", "item_id", "rating"])
    data = Interactions.from_frame(frame, scale=Scale(1, 5), items=[str(i) for i in range(24)])
    films = pd.DataFrame({"item_id": data.items, "movie_id": [str(100 + i) for i in range(24)]})
    films = films.assign(**{field: "" if field == "overview" else [[]] * 24 for field in FIELDS})
    genres = [["Even", "Odd"][i % 2 : i % 2 + 1] for i in range(24)] + [["Even"]] * 12
    later = pd.DataFrame({"item_id": [*films["movie_id"], *films["item_id"][:12]], "genres": genres})
    folds = pd.DataFrame({"item_id": films["item_id"], "fold": np.repeat([0, 1], 12)})
    values = cold_content(data, folds, films, later, rng=np.random.default_rng(1))
    # of 12 cold films a user likes the 6 of the own camp, and they come first: a perfect list
    assert np.nanmean(values["matched"]) == pytest.approx(1.0)
    # by number films 0-11 are all Even and 12-23 nothing: equal scores in every fold, so the catalogue's order
    np.testing.assert_array_equal(values["joined-by-id"], values["catalogue-order"])
