"""Generated audiences who keep coming back; what an old model costs them is planted, to check a study of ages with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from recsys_utils.base import ITEM, RATING, TIMESTAMP, USER, child_rng

START = 874_700_000  # seconds since 1970


@dataclass(frozen=True)
class World:
    """An audience that keeps coming back, and how fast what it wants changes.

    Parameters
    ----------
    users, items, kinds : counts; every item is of one kind
    days : length of the history
    between : mean days between two visits of a user
    per_visit : items rated in a visit
    taste_days : mean days until a user's favourite kind changes; inf = never
    vogue_days : mean age of what is watched, in days; items then arrive throughout; inf = all are there from the start
    seed : part of the world
    """

    users: int = 300
    items: int = 600
    kinds: int = 6
    days: int = 200
    between: float = 12.0
    per_visit: int = 6
    taste_days: float = float("inf")
    vogue_days: float = float("inf")
    seed: int = 1997

    def unknown(self, age: float) -> float:
        """The share of picks that a model ``age`` days old has never seen, ``1 - exp(-age / vogue_days)``.

        It is larger for users who have rated most of what is older.
        """
        return float(-np.expm1(-age / self.vogue_days))


def generate_world(world: World) -> pd.DataFrame:
    """Ratings (user_id, item_id, rating 2 or 5, timestamp) of users who like their favourite kind of the moment.

    A further column, arrival, is the second at which the item became available.

    The odds of a pick are ``exp(appeal + 3 [favourite kind] - age of the item / vogue_days)`` among what has arrived
    and the user has not rated. Nine in ten items of the favourite kind are liked, one in ten of the others.
    """
    rng = child_rng(world.seed, "world")
    kind = rng.integers(world.kinds, size=world.items)
    appeal = 0.8 * rng.standard_normal(world.items)
    changing = np.isfinite(world.vogue_days)
    arrival = rng.uniform(-2 * world.vogue_days, world.days, world.items) if changing else np.zeros(world.items)
    rows = []
    for user in range(world.users):
        favourite, unrated = rng.integers(world.kinds), np.ones(world.items, np.bool_)
        day = rng.uniform(0, world.days / 4)
        while day < world.days:
            odds = appeal + 3.0 * (kind == favourite) - (day - arrival) / world.vogue_days
            odds[(arrival > day) | ~unrated] = -np.inf
            picks = np.argsort(-(odds + rng.gumbel(size=world.items)))[: world.per_visit]
            picks = picks[np.isfinite(odds[picks])]
            unrated[picks] = False
            liked = rng.random(len(picks)) < np.where(kind[picks] == favourite, 0.9, 0.1)
            rows += [(user, item, like, day) for item, like in zip(picks, liked, strict=True)]
            pause = 1.1 + rng.exponential(world.between - 1.1)
            if rng.random() < -np.expm1(-pause / world.taste_days):
                favourite = rng.integers(world.kinds)
            day += pause
    users, items, likes, days = (np.array(column) for column in zip(*rows, strict=True))
    return pd.DataFrame(
        {
            USER: np.array([f"smoke_{u + 1}" for u in users], dtype=object), ITEM: items.astype(str).astype(object),
            RATING: np.where(likes, 5, 2).astype(np.float32), TIMESTAMP: START + (86_400 * days).astype(np.int64),
            "arrival": START + (86_400 * arrival[items]).astype(np.int64),
        }
    )  # fmt: skip
