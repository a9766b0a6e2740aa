"""What ships is what the evidence supports: table, text, bundle and lists of a finished run agree."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys_study import export
from recsys_study.stage_files import Stage
from recsys_study.weights import COLD, SEGMENTS, WHOLE
from recsys_utils.base import Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.ranking.bundle import Bundle
from recsys_utils.ranking.hybrid import WeightedEnsemble


@pytest.fixture(scope="module")
def stage(smoke_run: Path) -> Stage:
    return Stage("11_findings", workspace=f"data/processed/{smoke_run.name}")


def test_bundle_text_and_table_agree(smoke_run: Path, stage: Stage) -> None:
    table = pd.read_csv(smoke_run / "tables" / "alpha_shipping.csv")
    recommender = Bundle.open(smoke_run / "bundle").recommender
    cf, curve = recommender.hybrid.cf, recommender.hybrid.curve
    earns = table[table["earns"]]
    content_for = set(earns.loc[earns["part"] == "content", "segment"])
    for n in (1, 3, 5, 8, 10, 30, 50, 100):
        segment = next((name for name, (low, high) in SEGMENTS.items() if low <= n <= high), None)
        if segment not in content_for and not (segment == "n>=50" and WHOLE in content_for):
            assert curve([n]).tolist() == [1.0], f"content has weight at {n} ratings, where it earns nothing"
    assert bool(recommender.hybrid.content.vectors.nnz) == bool(content_for)
    (found,) = [f for f in json.loads((smoke_run / "findings.json").read_text()) if f["id"] == "alpha-curve"]
    parts = set(cf.parts) if isinstance(cf, WeightedEnsemble) else {cf.name}
    guards = pd.read_csv(smoke_run / "tables" / "alpha_against_popularity.csv")
    popular_for = set(guards.loc[~guards["passes"], "segment"])
    assert set(found["facts"]["popularity_ships_for"]) == popular_for
    for segment in popular_for:
        assert isinstance(cf, WeightedEnsemble)
        assert cf.weights_at([SEGMENTS[segment][0]])[0, list(cf.parts).index("popularity")] == 1
    parts -= {"popularity"} if popular_for else set()
    tried = table[table["part"] != "content"]
    if len(tried):  # of an ensemble: what the last step keeps either earns its place or is the last part of all
        last = tried[tried["step"] == tried["step"].max()]
        assert parts <= set(last["part"])
        assert len(parts) == 1 or parts == set(last.loc[last["earns"], "part"])
    assert set(found["facts"]["parts"]) == parts
    assert set(found["facts"]["content_ships_for"]) == content_for
    assert found["facts"]["alpha_at_3_10_50"] == pytest.approx(curve([3, 10, 50]).tolist())
    assert content_for <= {*SEGMENTS, WHOLE, COLD}


def test_the_lists_are_those_of_the_bundle(smoke_run: Path, stage: Stage) -> None:
    data, found = stage.interactions(), pd.read_parquet(smoke_run / "recommendations.parquet")
    again = Bundle.open(smoke_run / "bundle").recommender.recommend(data.user_item, list(data.users))
    pd.testing.assert_frame_equal(again, found, check_exact=True)


def test_the_lists_are_truly_better_than_chance_and_popularity(smoke_run: Path, stage: Stage) -> None:
    """The planted ratings of what is listed, against those of unrated and of popular items."""
    people, items = (stage.read("01_ingest", f"truth_{name}.parquet") for name in ("users", "items"))
    truth = np.stack(people["factors"]) @ np.stack(items["factors"]).T + items["bias"].to_numpy()
    data, found = stage.interactions(), pd.read_parquet(smoke_run / "recommendations.parquet")
    assert (people["user_id"].to_numpy() == data.users).all()
    lists = export.lists_of(found, data, 10)
    unrated = data.user_item.toarray() == 0
    popular = np.argsort(-np.where(unrated, unrated.shape[0] - unrated.sum(axis=0), -1), axis=1, kind="stable")[:, :10]
    rows = np.arange(len(lists))[:, None]
    assert truth[rows, lists].mean() > truth[unrated].mean() + 0.3
    assert truth[rows, lists].mean() > truth[rows, popular].mean()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found.assign(item_id=found["item_id"].where(found.index > 0, "a")),  # rated
        lambda found: found.assign(item_id="c"),  # twice
        lambda found: found.assign(reason=""),
        lambda found: found.iloc[:1],  # too short
    ],
)
def test_lists_that_ought_not_to_ship_are_refused(spoil) -> None:
    frame = pd.DataFrame({"user_id": "u", "item_id": ["a"], "rating": [5]})
    data = Interactions.from_frame(frame, scale=Scale(1, 5), items=pd.Series(["a", "b", "c"]))
    found = pd.DataFrame({"user_id": "u", "item_id": ["b", "c"], "rank": [1, 2], "reason": "so"})
    assert export.lists_of(found, data, 2).tolist() == [[1, 2]]
    with pytest.raises(ValueError, match=r"\w"):
        export.lists_of(spoil(found), data, 2)


def test_a_growing_profile_starts_from_nothing(smoke_run: Path, stage: Stage) -> None:
    data = stage.interactions()
    found = export.growing_profile(Bundle.open(smoke_run / "bundle").recommender, data)
    first = found[found["profile"] == "n=0"]
    assert first["strategy"].eq("popularity_fallback").all()
    assert found["profile"].nunique() >= 4
