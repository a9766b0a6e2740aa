"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# the same examples on every machine, and no failure because a machine is busy
settings.register_profile("study", derandomize=True, deadline=None)
settings.load_profile("study")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data sets kept outside the repository; tests that want it skip, visibly, where it is absent."""
    folder = Path(os.environ.get("RECSYS_SHARED_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder} (set RECSYS_SHARED_DATA)")
    return folder
