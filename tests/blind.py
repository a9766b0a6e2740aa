"""A canary for whole evaluations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from recsys_utils.base import Scores
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation import protocols
from recsys_utils.evaluation.protocols import Mask


def check_blind(run: Callable[[Interactions, Mask], Scores], data: Interactions, test: Mask) -> None:
    """What a whole evaluation computes before it looks at the targets must not change when the targets do.

    ``run(data, test)`` splits, fits, tunes and returns scores; it is called on the data and again on data where
    every user has lost the first half of the test ratings and the others have been turned round on the scale.
    This finds leaks that no look at a :class:`Case` can: state carried around the split by a closure or a cache.
    """
    place = np.full(len(data), len(data), np.int64)
    place[test] = protocols._rank_within(data.user[test], data.item[test])
    n_test = np.bincount(data.user[test], minlength=len(data.users))[data.user]
    keep = ~test | (place >= n_test // 2)
    rating = np.where(test, data.scale.lo + data.scale.hi - data.rating, data.rating).astype(np.float32)
    changed = replace(data, rating=rating).where(keep)
    if not np.array_equal(run(data, test), run(changed, test[keep])):
        raise protocols.LeakError("the scores change when nothing but test ratings does")
