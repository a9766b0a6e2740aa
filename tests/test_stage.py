"""A notebook's door: what it says about data that lack something."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from recsys_utils.content import FIELDS
from recsys_utils.stage import Stage


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
