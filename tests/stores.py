"""Ratings stores as an application would fill them."""

from __future__ import annotations

from typing import Any

import pandas as pd
import sqlalchemy as sql
from sqlalchemy.engine import URL

TABLE = sql.Table(
    "ratings",
    sql.MetaData(),
    sql.Column("user_id", sql.Text, nullable=False),
    sql.Column("movie_id", sql.Integer, nullable=False),
    sql.Column("rating", sql.Float, nullable=False),
    sql.Column("created_at", sql.DateTime(timezone=True), server_default=sql.func.current_timestamp()),
)


def write(url: URL, ratings: pd.DataFrame) -> None:
    """Append rows (user_id, movie_id, rating[, created_at]); the table is made where it is missing."""
    engine = sql.create_engine(url)
    with engine.begin() as connection:
        TABLE.create(connection, checkfirst=True)
        if len(ratings):
            records: list[Any] = ratings.astype(object).where(ratings.notna(), None).to_dict("records")
            connection.execute(sql.insert(TABLE), records)
    engine.dispose()
