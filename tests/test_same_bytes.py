"""The same commit, data and parameters give the same bytes, whatever the number of processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from recsys_utils.base import project_root


def test_one_process_gives_the_bytes_of_several(smoke_run: Path) -> None:
    command = [sys.executable, "-m", "recsys_study.cli", "run", "params/smoke.yaml", "--name", "smoke-alone"]
    done = subprocess.run([*command, "--jobs", "1"], cwd=project_root(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    alone = smoke_run.with_name("smoke-alone")
    for name in ("tables/metrics.csv", "findings.json", "recommendations.csv"):
        assert (alone / name).read_bytes() == (smoke_run / name).read_bytes(), name
