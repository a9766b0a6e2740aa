"""Runs the chain of notebooks: order, skipping, resume, progress, one process per notebook.

doit orders the stages and runs independent ones side by side. What a finished stage was made from (hashes of its
notebook, of the modules that the notebook imports, of its parameters and of the outputs it read) is taken before it
starts and stored with its outputs, so the record can't disagree with the files: not after a kill, nor after an edit.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import filelock

from recsys_study.dask_cluster import opened
from recsys_study.parameters import code_cells, declared_parameters
from recsys_study.run_notebook import Progress, messages, start_job, wait_for
from recsys_utils.base import SCOPE, InputError

CHAIN: dict[str, tuple[str, ...]] = {
    "01_ingest": (),
    "02_content_tfidf": ("01_ingest",),
    "03_cf_grid_search": ("01_ingest",),
    "04_neighbours": ("01_ingest",),
    "05_latent_traits": ("01_ingest", "03_cf_grid_search", "04_neighbours"),
    "06_alpha_curve": ("01_ingest", "02_content_tfidf", "03_cf_grid_search"),
    "07_diversity": ("01_ingest", "06_alpha_curve"),
    "08_elicitation": ("01_ingest", "06_alpha_curve"),
    "09_freshness": ("01_ingest",),
    "10_export": ("01_ingest", "04_neighbours", "06_alpha_curve", "07_diversity", "08_elicitation"),
    "appendix_accuracy_ladder": ("01_ingest", "03_cf_grid_search"),
    "appendix_catalogue_filters": ("01_ingest",),
    "appendix_movie_ids": ("01_ingest",),
    "11_findings": (
        "01_ingest", "02_content_tfidf", "03_cf_grid_search", "04_neighbours", "05_latent_traits", "06_alpha_curve",
        "07_diversity", "08_elicitation", "09_freshness", "10_export", "appendix_accuracy_ladder",
        "appendix_catalogue_filters", "appendix_movie_ids",
    ),
}  # fmt: skip
"""All stages in the order they run in, and the stages whose outputs each one reads; :func:`chain` is a run's part."""

CHAIN_FILE = "chain.json"  # of a workspace: the run's stages in order

SITE = "site"
MANIFEST = "manifest.json"
NOTEBOOK = "notebook.ipynb"
TIMINGS = "timings.json"
DATA = (".csv", ".css", ".yaml", ".j2")  # read by the module next to or above them that names the file


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run's results, and where they go.

    Parameters
    ----------
    root : project folder; workspace, reports and input files count from it
    name : the run's name: stages go to data/processed/<name>/, the report to reports/<name>/
    parameters : per stage, the values its notebook receives besides workspace, output, seed and jobs
    needs : the stages in reading order, each with the stages it reads
    notebooks : folder of <stage>.ipynb
    site : whether the report is assembled once every stage is finished
    settings : the whole checked parameter file, for run.json
    cluster : address of a Dask scheduler that takes the notebooks' tasks, or local:N; "" = this machine
    """

    root: Path
    name: str
    parameters: Mapping[str, Mapping[str, Any]]
    seed: int
    jobs: int = 2
    needs: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: CHAIN)
    notebooks: Path = Path("notebooks")
    site: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    cluster: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", self.name):
            raise InputError(f"A run's name is made of letters, digits, '.', '_' and '-'; got {self.name!r}.")
        if self.jobs < 1:
            raise InputError(f"--jobs must be at least 1; got {self.jobs}.")

    @property
    def workspace(self) -> Path:
        return self.root / "data" / "processed" / self.name

    @property
    def report(self) -> Path:
        return self.root / "reports" / self.name

    def budget(self, stage: str) -> float | None:
        """Seconds that a stage is meant to take at most on two cores; None: nothing is said."""
        return dict(self.settings.get("budget_seconds", {})).get(stage)

    def folder(self, stage: str) -> Path:
        """Where a stage's outputs are."""
        return self.report if stage == SITE else self.workspace / stage

    def notebook(self, stage: str) -> Path:
        return self.root / self.notebooks / f"{stage}.ipynb"

    def shown(self, path: Path) -> str:
        """A path as it may stand in outputs: from the project root, not from this machine's."""
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def values(self, stage: str, output: Path | None) -> dict[str, Any]:
        """What the notebook's parameters cell is overridden with."""
        return {
            "workspace": self.shown(self.workspace), "output": self.shown(output) if output else "", "seed": self.seed,
            "jobs": self.jobs, **self.parameters[stage],
        }  # fmt: skip


def chain(settings: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The stages of a run with these settings: appendices are in it only where they have something to show."""
    wanted = {
        "appendix_accuracy_ladder": settings["accuracy"] == "full",
        "appendix_movie_ids": bool(settings["dataset"]["links"]),
    }
    kept = [stage for stage in CHAIN if wanted.get(stage, True)]
    return {stage: tuple(need for need in CHAIN[stage] if need in kept) for stage in kept}


def check_parameters(plan: Plan, stage: str) -> None:
    """Compare what a notebook declares with what it will be given; papermill itself only warns."""
    declared, given = set(declared_parameters(plan.notebook(stage))), set(plan.values(stage, None))
    where = plan.shown(plan.notebook(stage))
    if declared - given:
        raise InputError(f"{where} declares {', '.join(sorted(declared - given))}, which the run does not supply.")
    if given - declared:
        raise InputError(
            f"{where} does not declare {', '.join(sorted(given - declared))}, which the run supplies; add it to the "
            "parameters cell."
        )


# ---- what a stage is made from


def imported_modules(sources: list[str], root: Path) -> list[Path]:
    """The project's own files that some code imports, directly or through one another, and the data files they name.

    Nothing is run.
    """
    pending, found = set().union(*(_imports(source, root) for source in sources)), set(_answers(sources, root))
    while pending:
        module = pending.pop()
        text = module.read_text(encoding="utf-8")
        data = {file for file in module.parent.rglob("*") if file.suffix in DATA and f'"{file.name}"' in text}
        found |= {module, *data}
        pending |= _imports(text, root) - found
    return sorted(found)


def _answers(sources: list[str], root: Path) -> Iterator[Path]:
    """The templates of the findings that a notebook concludes with."""
    for source in sources:
        for id in re.findall(r'conclude\(\s*"([\w-]+)"', source):
            yield root / "recsys_study" / "answers" / f"{id}.md.j2"


def _imports(source: str, root: Path) -> set[Path]:
    names: list[str] = []
    for node in ast.walk(ast.parse(_without_magics(source))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
    places = [root / name.replace(".", "/") for name in names]
    files = {file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")}
    return {file for file in files if file.exists()}


def _without_magics(source: str) -> str:
    return "\n".join("pass" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())


@cache
def _imported(notebook: Path, root: Path) -> list[Path]:
    return imported_modules(code_cells(notebook), root)


def ingredients(plan: Plan, stage: str) -> dict[str, str]:
    """What a stage's outputs depend on, by name, so that a change can be named to the reader.

    The number of jobs is not among it: results do not depend on it.
    """
    if stage == SITE:
        made = {
            f"outputs of {upstream}": _digest(manifest(plan, upstream).get("outputs", {})) for upstream in plan.needs
        }
        made |= {f"notebook of {upstream}": _sha256(plan.folder(upstream) / NOTEBOOK) for upstream in plan.needs}
        modules = imported_modules(["from recsys_study import report"], plan.root)
        texts = sorted((plan.root / "reports" / "published" / "discussion").glob("*.md"))
        return made | {plan.shown(file): _sha256(file) for file in [*modules, *texts, *_measured(plan)]}
    made = {"Python": platform.python_version(), plan.shown(plan.notebook(stage)): _sha256(plan.notebook(stage))}
    for module in _imported(plan.notebook(stage), plan.root):
        made[plan.shown(module)] = _sha256(module)
    lock = plan.root / "requirements.lock"
    if lock.exists():
        made[lock.name] = _sha256(lock)
    for name, value in {"seed": plan.seed, **plan.parameters[stage]}.items():
        made[f"parameter {name}"] = json.dumps(value, sort_keys=True)
        for file in value if isinstance(value, list) else [value]:
            if isinstance(file, str) and file and (plan.root / file).is_file():
                made[f"file {file}"] = _sha256(plan.root / file)
    if store := plan.parameters[stage].get("dataset_store"):
        from recsys_utils.personal import ratings_store

        made["ratings store"] = ratings_store.state(store, plan.root)
    for upstream in plan.needs[stage]:
        made[f"outputs of {upstream}"] = _digest(manifest(plan, upstream).get("outputs", {}))
    return made


def _measured(plan: Plan) -> list[Path]:
    """What `recsys bench --json` wrote for this run, bench.json in its workspace; else what is published."""
    places = (plan.workspace, plan.root / "reports" / "published")
    return next(filter(None, (sorted(folder.glob("bench.*")) for folder in places)), [])


def manifest(plan: Plan, stage: str) -> dict[str, dict[str, str]]:
    """The record of a finished stage: {"made_from": {...}, "outputs": {file: sha256}}; empty when there is none."""
    record: dict[str, dict[str, str]] = _read_json(plan.folder(stage) / MANIFEST)
    return record


def _outputs(folder: Path) -> dict[str, str]:
    """Hash of every output that decides later stages; the notebook copy and timings differ from run to run."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        path.relative_to(folder).as_posix(): _sha256(path) for path in files if path.name not in (NOTEBOOK, TIMINGS)
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


# ---- the run


class _Failed(Exception):
    """A stage's process failed; the message says how, and where to read more."""


class _Run:
    """State of one run: what is to be done and why, which processes live, what went wrong."""

    def __init__(self, plan: Plan, force: Sequence[str], progress: Progress) -> None:
        self.plan, self.force, self.progress = plan, force, progress
        self.made_from: dict[str, dict[str, str]] = {}
        self.children: set[subprocess.Popen[str]] = set()
        self.input_error = ""
        self.failed = False

    def is_current(self, stage: str) -> bool:
        """Whether a stage may be kept; doit asks in the main thread, once the stages it needs are finished."""
        try:
            reason = self._reason(stage)
        except Exception as error:
            return self._stop_with(stage, error)
        if reason:
            self.progress.show(stage, f"due: {reason}")
        return not reason

    def _reason(self, stage: str) -> str:
        wanted = self.made_from[stage] = ingredients(self.plan, stage)
        record = manifest(self.plan, stage)
        had: dict[str, str] = record.get("made_from", {})
        changed = sorted(name for name in wanted.keys() | had.keys() if wanted.get(name) != had.get(name))
        missing = [name for name in record.get("outputs", {}) if not (self.plan.folder(stage) / name).exists()]
        if not record:
            return "not there yet"
        if changed:
            return f"{changed[0]} changed" + (f" and {len(changed) - 1} more" if len(changed) > 1 else "")
        return f"{missing[0]} is gone" if missing else "forced" if stage in self.force else ""

    def execute(self, stage: str) -> bool:
        """Make one stage under a temporary name, then put it in its place; doit calls this in a thread."""
        if self.failed:
            return False
        target = self.plan.folder(stage)
        working = target.with_name(f".{target.name}.tmp")
        working.mkdir(parents=True)
        try:
            self._make(stage, working)
        except Exception as error:
            shutil.rmtree(working, ignore_errors=True)
            return self._stop_with(stage, error)
        _replace(working, target)
        self.progress.finish(stage, self.plan.budget(stage))
        return True

    def _make(self, stage: str, working: Path) -> None:
        plan = self.plan
        if stage == SITE:
            for file in _measured(plan):
                shutil.copyfile(file, working / file.name)
            job = {"workspace": str(plan.workspace), "site": str(working), "order": list(plan.needs)}
            _write_json(plan.workspace / "run.json", run_record(plan))
        else:
            job = notebook_job(plan, stage, plan.values(stage, working), working / NOTEBOOK)
        started = time.perf_counter()
        self.progress.start(stage)
        peak = self._process(stage, job)
        seconds = time.perf_counter() - started
        _write_json(working / MANIFEST, {"made_from": self.made_from[stage], "outputs": _outputs(working)})
        _write_json(working / TIMINGS, {"seconds": round(seconds, 2), "peak_mb": round(peak)})

    def _process(self, stage: str, job: dict[str, Any]) -> float:
        """Run one job in a process of its own, follow its progress; returns its peak memory in MB."""
        log = self.plan.workspace / "logs" / f"{stage}.log"
        log.parent.mkdir(exist_ok=True)
        complaint: dict[str, Any] = {}
        with log.open("w", encoding="utf-8") as sink:
            process = start_job(job, self.plan.root, sink)
            self.children.add(process)
            for message in messages(process):
                if "cell" in message:
                    self.progress.cell(stage, message["cell"], message["of"])
                else:
                    complaint = message
            peak = wait_for(process)
            self.children.discard(process)
        if process.returncode == 0:
            return peak
        if complaint.get("error") == "InputError":
            log.unlink()
            raise InputError(complaint["message"])
        lines = [complaint.get("traceback") or f"The process ended with status {process.returncode}.", ""]
        lines += [f"{stage} failed" + (f" in cell {complaint['at']}" if "at" in complaint else "") + "."]
        lines += [f"Log: {self.plan.shown(log)}"]
        if "to" in job and Path(job["to"]).exists():
            kept = shutil.copyfile(job["to"], log.with_suffix(".ipynb"))
            lines += [f"Notebook up to the failure: {self.plan.shown(kept)}"]
        raise _Failed("\n".join(lines))

    def _stop_with(self, stage: str, error: Exception) -> bool:
        """Start nothing more; stages at work finish and are kept."""
        self.failed = True
        if isinstance(error, InputError):
            self.input_error = str(error)
            self.progress.fail(stage, "")
        else:
            known = isinstance(error, _Failed)
            self.progress.fail(stage, str(error) if known else "".join(traceback.format_exception(error)))
        return False

    def stop(self) -> None:
        """End the processes of this run: closing their standard input tells each to end its kernel and itself."""
        for process in list(self.children):
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in list(self.children):
            with contextlib.suppress(subprocess.TimeoutExpired, ChildProcessError):
                process.wait(timeout=10)


def run(plan: Plan, *, only: str | None = None, force: Sequence[str] = ()) -> int:
    """Bring a run up to date: the whole chain and its report, or one stage and what it needs.

    Finished stages whose ingredients are unchanged are kept. A stage works under a temporary name and replaces its
    earlier outputs by renaming, so a killed or failed stage leaves them as they were and a new call resumes there.

    Returns
    -------
    0, or 1 when a stage failed (its traceback was printed).

    Raises
    ------
    InputError : an unknown stage, a parameter that a notebook does not declare or a run does not supply (found before
        anything starts), a run of this name in progress, or unusable input met by a stage.
    """
    stages = {**plan.needs, **({SITE: tuple(plan.needs)} if plan.site else {})}
    for stage in [*force, *([only] if only else [])]:
        if stage not in stages:
            raise InputError(f"There is no stage {stage!r}; the chain is: {', '.join(plan.needs)}.")
    wanted = {only} if only else set(stages)
    for stage in reversed(stages):  # what a stage needs comes before it
        wanted |= set(stages[stage]) if stage in wanted else set()
    for stage in wanted - {SITE}:
        check_parameters(plan, stage)
    with _locked(plan), opened(plan.cluster) as address, Progress() as progress:
        _write_json(plan.workspace / CHAIN_FILE, list(plan.needs))
        state = _Run(replace(plan, cluster=address), force, progress)
        try:
            status = _dispatch(state, stages, [stage for stage in stages if stage in wanted])
        except BaseException:
            state.stop()
            raise
    if state.input_error:
        raise InputError(state.input_error)
    return status


def _dispatch(state: _Run, stages: Mapping[str, tuple[str, ...]], selected: list[str]) -> int:
    """Hand the stages to doit, which runs those that are due, as soon as what they need is finished."""
    from doit.control import TaskControl
    from doit.dependency import Dependency, JsonDB
    from doit.reporter import ZeroReporter
    from doit.runner import MThreadRunner
    from doit.task import Stream, Task

    tasks = [
        Task(
            stage, [(state.execute, [stage])], task_dep=list(needs), uptodate=[(state.is_current, [stage])],
            io={"capture": False},
        )
        for stage, needs in stages.items()
    ]  # fmt: skip
    control = TaskControl(tasks)
    control.process(selected)
    database = Dependency(JsonDB, str(state.plan.workspace / ".doit.json"))
    reporter = ZeroReporter(sys.stderr, {})
    runner = MThreadRunner(database, reporter, stream=Stream(2), num_process=state.plan.jobs)
    return 0 if runner.run_all(control.task_dispatcher()) == 0 and not state.failed else 1


@contextlib.contextmanager
def _locked(plan: Plan) -> Iterator[None]:
    """Hold the run's name (the system gives the lock of a dead process back), and clean up before and after."""
    plan.workspace.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(plan.workspace / ".lock", timeout=0):
            _clean_up(plan)
            try:
                yield
            finally:
                _remove_if_empty(plan)
    except filelock.Timeout:
        raise InputError(
            f"A run named {plan.name!r} is in progress. Wait for it, or give this one another name with --name."
        ) from None


def _clean_up(plan: Plan) -> None:
    """Remove what a killed run left; give back an output that was being replaced at that moment."""
    for folder, names in ((plan.workspace, "*"), (plan.report.parent, plan.name)):
        for leftover in folder.glob(f".{names}.tmp"):
            shutil.rmtree(leftover)
        for old in folder.glob(f".{names}.old"):
            target = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
            if target.exists():
                shutil.rmtree(old)
            else:
                old.rename(target)


def _remove_if_empty(plan: Plan) -> None:
    """A run that never got to finish a stage leaves no trace."""
    kept = {".lock", ".doit.json", CHAIN_FILE, "logs"}
    logs = plan.workspace / "logs"
    if {path.name for path in plan.workspace.iterdir()} <= kept and not (logs.is_dir() and any(logs.iterdir())):
        shutil.rmtree(plan.workspace, ignore_errors=True)
        for folder in (plan.workspace.parent, plan.workspace.parent.parent, plan.report.parent):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _replace(finished: Path, target: Path) -> None:
    """Put a finished folder in the place of the earlier one (see :func:`_clean_up` for a kill between the renames)."""
    old = target.with_name(f".{target.name}.old")
    if target.exists():
        target.rename(old)
    finished.rename(target)
    shutil.rmtree(old, ignore_errors=True)


# ---- the record of a run


_ABOUT_DATA = ("dataset", "hashes", "source", "licence", "attribution", "limits")


def run_record(plan: Plan) -> dict[str, Any]:
    """run.json: parameters, commit, data hashes, versions; per stage seconds, budget, peak MB, ratings fitted, users
    evaluated; no environment variable."""
    first = next(iter(plan.needs))
    meta = _read_json(plan.workspace / first / "meta.json")
    return {
        "run": plan.name,
        "seed": plan.seed,
        "parameters": dict(plan.settings),
        "git": _git(plan.root),
        "data": {key: meta[key] for key in _ABOUT_DATA if key in meta},
        "versions": {"python": platform.python_version(), "platform": platform.platform(), **_versions()},
        "stages": {stage: _stage_record(plan, stage) for stage in plan.needs},
    }


def _stage_record(plan: Plan, stage: str) -> dict[str, Any]:
    """What a stage took, what it was meant to take at most, and how much data it saw."""
    took, seen = (_read_json(plan.workspace / stage / name) for name in (TIMINGS, SCOPE))
    budget = {"budget_seconds": plan.budget(stage)} if took and plan.budget(stage) else {}
    return {**took, **seen, **budget}


def _git(root: Path) -> dict[str, Any]:
    def ask(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": ask("rev-parse", "HEAD").strip(), "dirty": bool(ask("status", "--porcelain").strip())}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": None}


def _versions() -> dict[str, str]:
    """Versions of the packages that the project names itself."""
    required = [re.split(r"[^A-Za-z0-9._-]", line)[0] for line in metadata.requires("recsys-study") or []]
    found = {}
    for name in sorted(set(required)):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def notebook_job(plan: Plan, stage: str, values: dict[str, Any], to: Path) -> dict[str, Any]:
    return {"notebook": str(plan.notebook(stage)), "to": str(to), "values": values, "cluster": plan.cluster}


def reference(plan: Plan, folder: Path) -> None:
    """Execute every notebook on a finished run's workspace, writing nothing but the copies with their outputs.

    Raises
    ------
    InputError : a notebook failed; the message holds its traceback.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def one(stage: str) -> None:
        job = notebook_job(plan, stage, plan.values(stage, None), folder / f".{stage}.tmp")
        process = start_job(job, plan.root, subprocess.DEVNULL)
        told = list(messages(process))
        if process.wait() != 0:
            Path(job["to"]).unlink(missing_ok=True)
            raise InputError(f"{stage} failed: {told[-1].get('traceback') if told else 'see the log'}")
        os.replace(job["to"], folder / f"{stage}.ipynb")

    with ThreadPoolExecutor(plan.jobs) as pool:
        list(pool.map(one, plan.needs))
