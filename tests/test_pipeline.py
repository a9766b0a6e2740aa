"""The chain's runner, on toy chains of two or three notebooks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import stores

from recsys_study import pipeline
from recsys_study.pipeline import Plan, imported_modules, run
from recsys_utils.base import InputError
from recsys_utils.personal import ratings_store

ROOT = Path(__file__).resolve().parents[1]
NEEDS = {"a": (), "b": ("a",), "c": ("a",)}
READ_A = "import json\nvalue = json.loads((folder.parent / 'a' / 'value.json').read_text())\n"
HEAD = "import os, time\nfrom pathlib import Path\nfolder = Path(os.environ['RECSYS_ROOT']) / output\n"


def notebook(path: Path, *cells: str, **parameters: Any) -> None:
    """A notebook with the four common parameters, its own ones, and code."""
    common = {"workspace": "data/processed/toy", "output": "", "seed": 1, "jobs": 2}
    declared = "\n".join(f"{k} = {v!r}  # a comment" for k, v in (common | parameters).items())

    def cell(number: int, source: str, tags: list[str]) -> dict[str, Any]:
        return {
            "cell_type": "code", "id": f"c{number}", "metadata": {"tags": tags}, "source": source, "outputs": [],
            "execution_count": None,
        }  # fmt: skip

    cells_ = [cell(0, declared, ["parameters"]), *(cell(i, source, []) for i, source in enumerate((HEAD, *cells), 1))]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    document = {"cells": cells_, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(json.dumps(document), encoding="utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """a writes round(x); b and c read it. A trace file outside the outputs counts executions."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    trace = "with open(Path(os.environ['RECSYS_ROOT']) / 'trace', 'a') as file:\n    file.write({!r})\n"
    notebook(folder / "a.ipynb", trace.format("a"), "(folder / 'value.json').write_text(str(round(x)))", x=1.0)
    for name, factor in (("b", 2), ("c", 3)):
        writes = f"{READ_A}(folder / 'out.csv').write_text(str(value * {factor} + seed))"
        notebook(folder / f"{name}.ipynb", trace.format(name), writes)
    return tmp_path


def plan(root: Path, *, x: Any = 1.0, **changes: Any) -> Plan:
    parameters = {"a": {"x": x}, "b": {}, "c": {}}
    usual = {"root": root, "name": "toy", "seed": 5, "parameters": parameters, "needs": NEEDS, "site": False}
    return Plan(**usual | changes)


def executed(root: Path) -> str:
    """Which stages ran since the last call, sorted."""
    trace = root / "trace"
    text = trace.read_text() if trace.exists() else ""
    trace.unlink(missing_ok=True)
    return "".join(sorted(text))


def contents(root: Path) -> dict[str, bytes]:
    """Every file of the run except executed notebooks, logs and the runner's own state."""
    base = root / "data/processed/toy"
    kept = (p for p in sorted(base.rglob("*")) if p.is_file() and p.name not in ("notebook.ipynb", "timings.json"))
    return {str(p.relative_to(base)): p.read_bytes() for p in kept if p.parent != base and p.parent.name != "logs"}


def test_runs_what_is_due_and_nothing_else(project: Path) -> None:
    assert run(plan(project)) == 0
    assert executed(project) == "abc"
    base = project / "data/processed/toy"
    assert (base / "b/out.csv").read_text() == str(1 * 2 + 5)
    assert run(plan(project)) == 0
    assert executed(project) == ""
    # x = 1.2 makes `a` run, but round(1.2) = round(1.0): its outputs are the same, so nothing after it is due
    assert run(plan(project, x=1.2)) == 0
    assert executed(project) == "a"
    assert run(plan(project, x=2.0), only="b") == 0
    assert executed(project) == "ab"
    assert (base / "b/out.csv").read_text() == str(2 * 2 + 5)
    assert run(plan(project, x=2.0), force=["c"]) == 0
    assert executed(project) == "c"
    (base / "b/out.csv").unlink()
    assert run(plan(project, x=2.0)) == 0
    assert executed(project) == "b"
    copy = json.loads((base / "a/notebook.ipynb").read_text())
    assert "papermill" not in copy["metadata"]
    assert str(project) not in json.dumps(copy)


def test_jobs_change_no_byte(project: Path) -> None:
    assert run(plan(project, jobs=1)) == 0
    alone = contents(project)
    assert run(plan(project, jobs=3), force=["a", "b", "c"]) == 0
    assert executed(project) == "aabbcc"
    assert contents(project) == alone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": {"a": {"x": 1.0, "y": 2}, "b": {}, "c": {}}}, r"a\.ipynb does not declare y"),
        ({"parameters": {"a": {}, "b": {}, "c": {}}}, r"a\.ipynb declares x"),
        ({"needs": NEEDS | {"d": ("a",)}, "parameters": {"a": {"x": 1.0}, "b": {}, "c": {}, "d": {}}}, r"d\.ipynb"),
        ({"name": "../up"}, "name is made of"),
        ({"jobs": 0}, "--jobs"),
    ],
)
def test_a_wrong_plan_stops_before_anything_starts(project: Path, change: dict[str, Any], message: str) -> None:
    before = sorted(project.rglob("*"))
    with pytest.raises(InputError, match=message):
        run(plan(project, **change))
    assert sorted(project.rglob("*")) == before


def test_an_unknown_stage_is_named_with_the_known_ones(project: Path) -> None:
    with pytest.raises(InputError, match="no stage 'z'; the chain is: a, b, c"):
        run(plan(project), only="z")


@pytest.mark.parametrize("line", ["k: int = 3", "k = 1 + x", "print(1)", "a = b = 3"])
def test_the_parameters_cell_takes_plain_lines_only(tmp_path: Path, line: str) -> None:
    notebook(tmp_path / "n.ipynb")
    text = json.loads((tmp_path / "n.ipynb").read_text())
    text["cells"][0]["source"] += "\n" + line
    (tmp_path / "n.ipynb").write_text(json.dumps(text))
    with pytest.raises(InputError, match="plain lines"):
        pipeline.declared_parameters(tmp_path / "n.ipynb")


def test_a_failing_cell_shows_its_traceback_and_keeps_earlier_output(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(plan(project)) == 0
    before = contents(project)
    notebook(project / "notebooks/b.ipynb", "(folder / 'out.csv').write_text('half')", "def f():\n    1 / 0\nf()")
    capsys.readouterr()
    assert run(plan(project)) == 1
    shown = capsys.readouterr().out
    assert "ZeroDivisionError: division by zero" in shown
    assert "\x1b" not in shown
    assert "b failed in cell 5" in shown  # parameters, injected parameters, head, the write; the fifth divides
    assert contents(project) == before
    for line in ("Log: data/processed/toy/logs/b.log", "failure: data/processed/toy/logs/b.ipynb"):
        assert line in shown
    assert "ZeroDivisionError" in (project / "data/processed/toy/logs/b.ipynb").read_text()


def test_unusable_input_met_by_a_stage_leaves_no_trace(project: Path) -> None:
    notebook(
        project / "notebooks/a.ipynb",
        "from recsys_utils.base import InputError\nraise InputError('ratings.csv has no column rating.')", x=1.0,
    )  # fmt: skip
    before = sorted(project.rglob("*"))
    with pytest.raises(InputError, match=r"^ratings\.csv has no column rating\.$"):
        run(plan(project))
    assert sorted(project.rglob("*")) == before


def test_a_changed_input_file_is_a_reason_to_run(project: Path) -> None:
    (project / "own.csv").write_text("1")
    parameters = {"a": {"x": "own.csv"}, "b": {}, "c": {}}
    notebook(project / "notebooks/a.ipynb", "(folder / 'value.json').write_text('1')", x="")
    assert run(plan(project, parameters=parameters), only="a") == 0
    (project / "own.csv").write_text("2")
    now = pipeline.ingredients(plan(project, parameters=parameters), "a")
    made_from = pipeline.manifest(plan(project), "a")["made_from"]
    assert {name for name in now if now[name] != made_from[name]} == {"file own.csv"}


def test_new_ratings_in_the_store_are_a_reason_to_run(project: Path) -> None:
    (project / "data").mkdir()
    store = "sqlite:///data/ratings.db"
    named = plan(project, parameters={"a": {"dataset_store": store}, "b": {}, "c": {}})
    absent = pipeline.ingredients(named, "a")["ratings store"]
    row = pd.DataFrame({"user_id": ["ann"], "movie_id": [862], "rating": [4.5]})
    stores.write(ratings_store.store_url(store, project), row)
    first = pipeline.ingredients(named, "a")["ratings store"]
    stores.write(ratings_store.store_url(store, project), row.assign(movie_id=11))
    assert len({absent, first, pipeline.ingredients(named, "a")["ratings store"]}) == 3
    assert "ratings store" not in pipeline.ingredients(plan(project), "a")


def test_only_modules_a_notebook_reaches_count(tmp_path: Path) -> None:
    package = tmp_path / "kit"
    package.mkdir()
    for name, code in {
        "one": "from kit.two import f",
        "two": "def f():\n    import kit.three\n    open('kit/own.csv', encoding=\"own.csv\")",
        "three": "",
        "other": "from kit import one",
    }.items():
        (package / f"{name}.py").write_text(code)
    for name in ("own.csv", "nobodys.yaml"):
        (package / name).write_text("")
    found = imported_modules(["%matplotlib inline\nfrom kit import one\nimport numpy"], tmp_path)
    assert [path.name for path in found] == ["one.py", "own.csv", "three.py", "two.py"]


def test_the_packages_data_files_belong_to_who_reads_them() -> None:
    notebooks = [source for path in (ROOT / "notebooks").glob("*.ipynb") for source in pipeline.code_cells(path)]
    first, site, all_stages = (
        {path.name for path in imported_modules(sources, ROOT)}
        for sources in (["from recsys_study import ingest"], ["from recsys_study import report"], notebooks)
    )
    assert "ml_100k_movie_ids.csv" in first
    assert {"report.css", "index.md.j2", "macros.md.j2"} <= site
    assert "elicitation.md.j2" in all_stages - site
    read = {name for name in first | site | all_stages if not name.endswith(".py")}
    there = {p.name for package in ("recsys_utils", "recsys_study") for p in (ROOT / package).rglob("*.*")}
    assert read == {name for name in there if name.endswith(pipeline.DATA)}, "nobody reads the others"


SLOW = """(folder / 'begun').write_text('')
while not (Path(os.environ['RECSYS_ROOT']) / 'go').exists():
    time.sleep(.05)"""
DRIVER = """
import sys
from pathlib import Path
from recsys_study.pipeline import Plan, run
sys.exit(run(Plan(root=Path(sys.argv[1]), name="toy", seed=5, site=False, needs={"a": (), "b": ("a",), "c": ("a",)},
                  parameters={"a": {"x": 1.0}, "b": {}, "c": {}})))
"""


def start(root: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", DRIVER, str(root)], stderr=subprocess.PIPE, stdout=subprocess.PIPE)


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def living(root: Path) -> list[str]:
    """Processes whose environment names this project (Linux)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"RECSYS_ROOT={root}\0".encode() in (entry / "environ").read_bytes():
                found.append(entry.name)
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_ends_its_processes_and_resumes(project: Path, how: signal.Signals) -> None:
    steady = (project / "notebooks/b.ipynb").read_text()
    assert run(plan(project)) == 0
    before = contents(project)
    notebook(project / "notebooks/b.ipynb", SLOW, READ_A + "(folder / 'out.csv').write_text(str(value * 20 + seed))")
    executed(project)
    process = start(project)
    wait_for((project / "data/processed/toy/.b.tmp/begun").exists)
    os.kill(process.pid, how)
    process.communicate(timeout=20)
    wait_for(lambda: not living(project))
    assert contents(project) | {".b.tmp/begun": b""} == before | {".b.tmp/begun": b""}
    (project / "go").touch()
    assert run(plan(project)) == 0
    assert executed(project) == ""  # a and c are finished and stay; the slow b writes no trace
    assert (project / "data/processed/toy/b/out.csv").read_text() == str(1 * 20 + 5)
    assert not list((project / "data/processed/toy").glob(".*.tmp"))
    (project / "notebooks/b.ipynb").write_text(steady)


def test_a_kill_between_the_two_renames_loses_nothing(project: Path) -> None:
    assert run(plan(project)) == 0
    before = contents(project)
    base = project / "data/processed/toy"
    (base / "b").rename(base / ".b.old")
    executed(project)
    assert run(plan(project)) == 0
    assert executed(project) == ""
    assert contents(project) == before


def test_two_runs_of_one_name_do_not_meet(project: Path) -> None:
    notebook(project / "notebooks/b.ipynb", SLOW)
    process = start(project)
    wait_for((project / "data/processed/toy/.b.tmp/begun").exists)
    with pytest.raises(InputError, match="in progress"):
        run(plan(project))
    (project / "go").touch()
    process.communicate(timeout=30)
    assert process.returncode == 0


def test_a_refused_run_leaves_the_first_ones_workspace_and_lock(project: Path) -> None:
    first = plan(project)
    with pipeline._locked(first):  # before its first stage has made a folder
        for _ in range(2):
            with pytest.raises(InputError, match="in progress"), pipeline._locked(first):
                pass
        assert (first.workspace / ".lock").exists()
    assert not first.workspace.exists(), "a run without a finished stage leaves no trace"


def test_an_edit_while_a_stage_runs_makes_it_due_again(project: Path) -> None:
    notebook(project / "notebooks/b.ipynb", SLOW)
    begun = project / "data/processed/toy/.b.tmp/begun"

    def edit() -> None:
        wait_for(begun.exists)
        text = (project / "notebooks/b.ipynb").read_text()
        (project / "notebooks/b.ipynb").write_text(text.replace("time.sleep(.05)", "time.sleep(.06)"))
        (project / "go").touch()

    editor = threading.Thread(target=edit)
    editor.start()
    assert run(plan(project)) == 0
    editor.join()
    assert pipeline.ingredients(plan(project), "b") != pipeline.manifest(plan(project), "b")["made_from"]


def test_run_record_sets_the_budget_and_what_was_seen_beside_what_it_took(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scope = {"ratings_fitted": 3, "users_evaluated": 2}
    notebook(project / "notebooks/a.ipynb", f"(folder / 'scope.json').write_text({json.dumps(scope)!r})", x=1.0)
    budgets = {"a": 0.01, "b": 900.0}
    toy = plan(project, needs={"a": (), "b": ("a",)}, settings={"budget_seconds": budgets})
    notebook(project / "notebooks/b.ipynb", "pass")
    assert run(toy) == 0
    stages = pipeline.run_record(toy)["stages"]
    assert {key: stages["a"][key] for key in scope} == scope
    assert {stage: stages[stage]["budget_seconds"] for stage in stages} == budgets
    assert "ratings_fitted" not in stages["b"]
    told = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if "done in" in line}
    assert told["a"].endswith("over its budget of 0.0 s")
    assert "budget" not in told["b"]


def test_run_record_says_unknown_outside_git(project: Path) -> None:
    assert run(plan(project)) == 0
    record = pipeline.run_record(plan(project))
    assert record["git"] == {"commit": "unknown", "dirty": None}
    assert record["seed"] == 5
    assert record["stages"]["a"]["peak_mb"] > 10
    assert "numpy" in record["versions"]


def test_progress_lines_name_stage_reason_and_time(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(plan(project), only="a") == 0
    shown = capsys.readouterr().out
    assert "due: not there yet" in shown
    assert "done in" in shown
