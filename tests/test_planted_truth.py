"""The finished run on generated data against the truth that it was generated from."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from recsys_utils.base import project_root

PROTOCOL = "rating-cv5"


@pytest.fixture(scope="module")
def rmse(smoke_run: Path) -> pd.DataFrame:
    """RMSE with its interval by model and variant."""
    rows = pd.read_csv(smoke_run / "tables" / "metrics.csv", keep_default_na=False)
    rows = rows[(rows["protocol"] == PROTOCOL) & (rows["metric"] == "rmse") & (rows["segment"] == "all")]
    return rows.set_index(["model", "variant"])[["value", "ci_low", "ci_high"]]


def test_no_model_beats_the_truth(smoke_run: Path, rmse: pd.DataFrame) -> None:
    truth = json.loads(
        (project_root() / "data" / "processed" / smoke_run.name / "01_ingest" / "truth.json").read_text()
    )
    assert rmse["value"].min() > truth["rmse"], "who knows the planted expectations errs least"


def test_models_find_what_was_planted(rmse: pd.DataFrame) -> None:
    """Taste explains most of a rating: what models it must beat means, and the tuned settings the classic ones."""
    mean = rmse.loc[("item_mean_and_offset", "")]
    for model, variant in (("svd", "tuned"), ("knn", "tuned"), ("latent_traits", "")):
        assert rmse.loc[(model, variant), "ci_high"] < mean["ci_low"], model
    assert rmse.loc[("svd", "tuned"), "ci_high"] < rmse.loc[("svd", "classic"), "ci_low"]


def test_user_knn_beats_the_item_mean_on_what_it_predicts(rmse: pd.DataFrame) -> None:
    ours, mean = ((rmse.loc[key]) for key in (("neighbours", "tuned;targets=predicted"),
                                              ("item_mean_and_offset", "targets=predicted")))  # fmt: skip
    assert ours["ci_high"] < mean["ci_low"]
