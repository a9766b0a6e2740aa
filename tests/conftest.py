"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
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


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run on synthetic data that all tests share and none may change: reports/smoke."""
    with FileLock(tmp_path_factory.getbasetemp().parent / "smoke.lock"):  # one of the test processes makes it
        command = [sys.executable, "-m", "recsys_study.cli", "run", "params/smoke.yaml"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "reports" / "smoke"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI a skip that tests/allowed_skips.txt does not list is a failure: it would hide a check for ever."""
    report = yield
    if os.environ.get("CI") == "true" and report.skipped and not hasattr(report, "wasxfail"):
        lines = (ROOT / "tests" / "allowed_skips.txt").read_text(encoding="utf-8").splitlines()
        allowed = {line.split("#")[0].strip() for line in lines} - {""}
        if item.nodeid.split("[")[0] not in allowed:
            report.outcome = "failed"
            report.longrepr = f"skipped in CI but not in tests/allowed_skips.txt: {item.nodeid}: {report.longrepr}"
    return report
