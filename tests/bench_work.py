"""Contenders of test_bench; another process imports them, so this module imports little."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from joblib import Parallel, delayed


def ours(n: int) -> Generator[None, None, np.ndarray]:
    yield
    return np.arange(n, dtype=float)


def theirs(n: int, wrong: float) -> Generator[None, None, np.ndarray]:
    yield
    return np.arange(n) + wrong


def by_workers(n: int) -> Generator[None, None, list[int]]:
    yield
    return Parallel(n_jobs=2)(delayed(pow)(number, 2) for number in range(n))


def holding_memory(megabytes: int) -> Generator[None, None, float]:
    yield
    return float(np.ones(megabytes * 125_000).sum())
