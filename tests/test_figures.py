"""Tables as the notebooks show them, and what only the site has to know."""

from __future__ import annotations

import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from recsys_study import figures

mpl.use("Agg")


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr.*?</tr>", html, re.S)
    return [[re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)] for row in rows]


@pytest.fixture
def rows() -> pd.DataFrame:
    return pd.DataFrame(
        {"protocol": "rating-cv5", "model": ["svd", "knn"], "metric": "rmse", "value": [0.91006, 0.91664],
         "ci_low": [0.8952, 0.9012], "ci_high": [0.926, 0.933], "n": 1943, "note": [None, ""]}
    )  # fmt: skip


def test_an_interval_stands_beside_its_value_and_what_rows_share_above(rows: pd.DataFrame) -> None:
    html = figures.table_html(rows)
    # half-widths of .0154 and .0159 deserve three decimals
    assert cells(html) == [["model", "value"], ["svd", "0.910 [0.895, 0.926]"], ["knn", "0.917 [0.901, 0.933]"]]
    assert "<caption>All rows: protocol rating-cv5, metric rmse, n 1943</caption>" in html


def test_a_difference_before_its_ends_is_merged_like_a_value(rows: pd.DataFrame) -> None:
    differences = rows.rename(columns={"value": "difference"})[["model", "difference", "ci_low", "ci_high"]]
    assert cells(figures.table_html(differences))[0] == ["model", "difference"]


def test_columns_print_as_they_need() -> None:
    whole = {"year": [1995, 2001], "n": [1234, 56]}
    parts = {"rounded": [0.044, 0.5], "long": [0.123456, -0.0], "mb": [1234.56, 3.0], "mixed": [943.0, 0.063]}
    frame = pd.DataFrame(whole | parts | {"empty": np.nan})
    assert cells(figures.table_html(frame)) == [
        ["year", "n", "rounded", "long", "mb", "mixed"],
        ["1995", "1,234", "0.0440", "0.1235", "1,235", "943"],
        ["2001", "56", "0.5000", "0.0000", "3", "0.063"],
    ]


def test_a_pivot_has_one_header_row() -> None:
    long = pd.DataFrame({"cf": ["svd", "svd"], "rule": ["rank", "z"], "value": [0.25, 0.5]})
    pivot = long.pivot_table(index="cf", columns="rule", values="value")
    assert cells(figures.table_html(pivot)) == [["cf", "rank", "z"], ["svd", "0.2500", "0.5000"]]


def test_long_text_is_not_cut() -> None:
    assert "x" * 300 in figures.table_html(pd.DataFrame({"reason": ["x" * 300]}))


def test_a_row_without_interval_shows_its_value_or_nothing() -> None:
    rows = pd.DataFrame({"value": [0.5, None], "ci_low": [0.4, None], "ci_high": [0.6, None], "who": ["a", "b"]})
    html = figures.table_html(rows)
    assert "0.50 [0.40, 0.60]" in html
    assert "nan" not in html.lower()
