"""A notebook's door: what it says about data that lack something."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from recsys_study.stage_files import PANEL, Stage
from recsys_utils.base import RATING, SCOPE
from recsys_utils.models.content import FIELDS


@pytest.mark.parametrize("what", ["time", "genres", "text"])
@pytest.mark.parametrize("present", [True, False])
def test_says_what_the_data_have(tmp_path: Path, what: str, present: bool) -> None:
    folder = tmp_path / "01_ingest"
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps({"has_time": what == "time" and present}))
    films: dict[str, list[object]] = {field: [[], []] for field in FIELDS} | {"overview": ["", ""]}
    if present and what != "time":
        films |= {"genres": [[], ["Drama"]]} if what == "genres" else {"overview": ["", "A heist."]}
    pd.DataFrame({"item_id": ["1", "2"]} | films).to_parquet(folder / "items.parquet")
    assert Stage("02_content_tfidf", workspace=str(tmp_path)).has(what) is present  # type: ignore[arg-type]


def test_later_stages_read_the_panel_unless_they_ask_for_everyone(tmp_path: Path) -> None:
    """01_ingest leaves the drawn users in a folder of their own; what is not there is everybody's."""
    rows = pd.DataFrame({"user_id": ["a", "b"], "item_id": "x", RATING: [1.0, 5.0], "timestamp": 0})
    films = pd.DataFrame({"item_id": ["x"]})
    for name, part in (("", rows), (PANEL, rows[1:])):
        folder = tmp_path / "01_ingest" / name
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text(json.dumps({"scale": {"lo": 1, "hi": 5}}))
        for file, table in (("interactions", part), ("users", part[["user_id"]]), ("items", films), ("splits", part)):
            table.to_parquet(folder / f"{file}.parquet")
    films.to_parquet(tmp_path / "01_ingest" / "item_folds.parquet")
    stage = Stage("03_cf_grid_search", workspace=str(tmp_path))
    assert stage.interactions().users.tolist() == stage.read("01_ingest", "users.parquet")["user_id"].tolist() == ["b"]
    assert stage.interactions(everyone=True).users.tolist() == ["a", "b"]
    assert len(stage.splits()) == 1
    assert len(stage.splits(everyone=True)) == 2
    assert len(stage.read("01_ingest", "item_folds.parquet")) == 1


def test_the_end_tells_what_was_seen(tmp_path: Path) -> None:
    stage = Stage("02_content_tfidf", workspace=str(tmp_path), output=str(tmp_path / "out"))
    stage.close(fitted=100, evaluated=7)
    told = json.loads((tmp_path / "out" / SCOPE).read_text())
    assert told == {"ratings_fitted": 100, "users_evaluated": 7}
