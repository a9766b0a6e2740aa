"""Contenders of test_bench; another process imports them, so this module imports little."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np


def ours(n: int) -> Generator[None, None, np.ndarray]:
    yield
    return np.arange(n, dtype=float)


def theirs(n: int, wrong: float) -> Generator[None, None, np.ndarray]:
    yield
    return np.arange(n) + wrong


def holding_memory(megabytes: int) -> Generator[None, None, float]:
    yield
    return float(np.ones(megabytes * 125_000).sum())
