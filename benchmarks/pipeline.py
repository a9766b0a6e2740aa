"""The chain on synthetic data: from nothing, again without a change, and after a change of one notebook.

It runs in a copy of the project, two processes at a time, kernels compiled beforehand. With all measurements papermill
executes the same notebooks one after the other with the same parameters, as a person without the chain would, and has
to find the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path

from benchmarks.measure import Contender, Row, compare
from recsys_study.pipeline import CHAIN
from recsys_utils.base import project_root

CHANGED = "10_export"
JOBS = 2
COMMAND = ("-m", "recsys_study.cli", "run", "params/smoke.yaml", "--jobs", str(JOBS))


def copy(target: Path) -> None:
    """What a run reads: no data, no report; then a run, for whoever comes first would compile the kernels for all."""
    for name in ("notebooks", "params", "recsys_utils", "recsys_study"):
        shutil.copytree(project_root() / name, target / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_*"))
    call(target, *COMMAND)
    for name in ("data", "reports"):
        shutil.rmtree(target / name)


def call(root: Path, *arguments: str) -> str:
    environment = os.environ | {"RECSYS_ROOT": str(root), "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, *arguments], cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:] + done.stderr[-2000:])
    return done.stdout


def chain(root: Path) -> Generator[None, None, str]:
    yield
    said = call(root, *COMMAND)
    return said if "Nothing changed" in said else (root / "reports/smoke/findings.json").read_text("utf-8")


def changed(root: Path) -> Generator[None, None, list[str]]:
    """A comment more in one notebook; the answer is the stages that ran."""
    path = root / "notebooks" / f"{CHANGED}.ipynb"
    notebook = json.loads(path.read_text("utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code[-1]["source"] = ["# changed\n", *code[-1]["source"]]
    path.write_text(json.dumps(notebook), "utf-8")
    before = {stage: written(root, stage) for stage in CHAIN}
    yield
    call(root, *COMMAND)
    return [stage for stage in CHAIN if written(root, stage) != before[stage]]


def written(root: Path, stage: str) -> int:
    return (root / "data/processed/smoke" / stage / "notebook.ipynb").stat().st_mtime_ns


def by_papermill(root: Path) -> Generator[None, None, str]:
    import papermill

    from recsys_study import cli

    os.environ |= {"RECSYS_ROOT": str(root), "PYTHONPATH": str(root)}
    os.chdir(root)
    plan = cli.plan_from(root / "params" / "smoke.yaml", jobs=JOBS, name="papermill")
    yield
    found = []
    for stage in CHAIN:
        folder = plan.workspace / stage
        folder.mkdir(parents=True)
        papermill.execute_notebook(
            plan.notebook(stage), folder / "notebook.ipynb", plan.values(stage, folder), cwd=root / "notebooks",
            progress_bar=False, kernel_name="python3",
        )  # fmt: skip
        found += json.loads((folder / "findings.json").read_text("utf-8"))
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def run(*, full: bool = False) -> list[Row]:
    """Rows of the three runs; there is one size."""
    root = Path(tempfile.mkdtemp()).resolve()
    about = {"benchmark": "pipeline", "size": len(CHAIN), "unit": "stages"}

    def same_findings(ours: str, theirs: str) -> tuple[bool, str]:
        return ours == theirs, f"findings.json {'identical' if ours == theirs else 'differs'}"

    def nothing(answer: str) -> Row:
        return {"same": "Nothing changed" in answer, "compared": "no stage ran"}

    def only_its_own(ran: list[str]) -> Row:
        return {"same": CHANGED in ran and "01_ingest" not in ran, "compared": f"ran: {', '.join(ran)}"}

    papermill = Contender("papermill, one by one", by_papermill, (root,), check=same_findings, jobs=2)
    try:
        copy(root)
        return [
            *compare(about | {"task": "smoke chain from nothing"}, [
                Contender("recsys run", chain, (root,), jobs=JOBS), *([papermill] if full else [])
            ]),
            *compare(about | {"task": "again, nothing changed"}, [
                Contender("recsys run", chain, (root,), jobs=JOBS, extra=nothing)
            ]),
            *compare(about | {"task": f"after a change of {CHANGED}"}, [
                Contender("recsys run", changed, (root,), jobs=JOBS, extra=only_its_own)
            ]),
        ]  # fmt: skip
    finally:
        shutil.rmtree(root)
