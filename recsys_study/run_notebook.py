"""One process per notebook (or site): started and shown by the pipeline, and its children end with it.

The process reads its job from the command line, writes one JSON message a line to standard output (everything printed
goes to the log), and ends itself, the kernel and the kernel's workers when its standard input closes: whatever happens
to the pipeline, nothing is left computing.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recsys_study import dask_cluster
from recsys_utils.base import InputError

_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA")}


def start_job(job: dict[str, Any], root: Path, log: Any) -> subprocess.Popen[str]:
    """Start ``python -m recsys_study.run_notebook``: it tells its progress on stdout and ends when its stdin closes."""
    environment = os.environ | _ONE_THREAD
    environment |= {"PYTHONHASHSEED": "0", "RECSYS_ROOT": str(root), "JUPYTER_PREFER_ENV_PATH": "1"}
    environment[dask_cluster.VARIABLE] = job.get("cluster", "")
    return subprocess.Popen(
        [sys.executable, "-m", "recsys_study.run_notebook", json.dumps(job)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
        start_new_session=True,  # Ctrl-C reaches the run, which then ends its processes in order
    )  # fmt: skip


def messages(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    assert process.stdout is not None
    for line in process.stdout:
        yield json.loads(line)


def wait_for(process: subprocess.Popen[str]) -> float:
    """Peak memory in MB of a job that has closed its output; 0 where the system does not record it."""
    if sys.platform == "win32":
        process.wait()
        return 0.0
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return float(usage.ru_maxrss) / (1024 if sys.platform != "darwin" else 1024**2)


class Progress:
    """Prints a line when a stage is due, starts, is at a cell (every ten seconds), ends."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}
        self.last: dict[str, float] = {}

    def __enter__(self) -> Progress:
        self.start_time = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        nothing = "" if self.began else "Nothing changed since the last run; "
        print(f"{nothing}total {duration(time.perf_counter() - self.start_time)}", flush=True)

    def show(self, stage: str, state: str) -> None:
        print(f"{stage:<26} {state}", flush=True)

    def start(self, stage: str) -> None:
        self.began[stage] = self.last[stage] = time.perf_counter()
        self.show(stage, "starts")

    def cell(self, stage: str, number: int, of: int) -> None:
        now = time.perf_counter()
        if now - self.last[stage] >= 10:
            self.last[stage] = now
            self.show(stage, f"cell {number}/{of}, {duration(now - self.began[stage])}")

    def finish(self, stage: str, budget: float | None = None) -> None:
        took = time.perf_counter() - self.began[stage]
        over = f", over its budget of {duration(budget)}" if budget and took > budget else ""
        self.show(stage, f"done in {duration(took)}{over}")

    def fail(self, stage: str, message: str) -> None:
        self.show(stage, "failed" + (f"\n{message}" if message else ""))


def duration(seconds: float) -> str:
    """
    >>> duration(3.24), duration(75)
    ('3.2 s', '1 min 15 s')
    """
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


# ---- in the process of a job


def _job_main(text: str) -> int:
    """The process of one job."""
    told = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # whatever prints goes to the log, not between the messages
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(**message: Any) -> None:
        told.write(json.dumps(message) + "\n")

    job = json.loads(text)
    try:
        if "site" in job:
            from recsys_study import report

            report.assemble(Path(job["workspace"]), Path(job["site"]), job["order"])
            return 0
        return _execute_notebook(job, tell)
    except InputError as error:
        tell(error="InputError", message=str(error))
    except Exception as error:
        import traceback

        tell(error=type(error).__name__, message=str(error), traceback=traceback.format_exc())
    return 1


def _execute_notebook(job: dict[str, Any], tell: Callable[..., None]) -> int:
    import papermill
    from papermill.exceptions import PapermillExecutionError, strip_color

    at, notebook, to = [0], Path(job["notebook"]), Path(job["to"])
    cells = len(json.loads(notebook.read_text(encoding="utf-8"))["cells"]) + 1  # and one that papermill injects

    def at_cell(cell: Any, cell_index: int) -> None:
        at[0] = cell_index + 1
        tell(cell=at[0], of=cells)

    try:
        with tempfile.TemporaryDirectory(prefix="recsys-") as scratch:
            papermill.execute_notebook(
                notebook, to, job["values"], kernel_name="python3", cwd=notebook.parent, progress_bar=False,
                record_timing=False, on_cell_start=at_cell, start_timeout=600, config=_kernel_by_files(scratch),
            )  # fmt: skip
    except PapermillExecutionError as error:
        traceback = strip_color("\n".join(error.traceback))
        tell(error=error.ename, message=error.evalue, traceback=traceback, at=at[0])
        return 1
    _strip_metadata(to)
    return 0


def _kernel_by_files(folder: str) -> Any:
    """Settings by which a kernel talks through files in ``folder``, where the system can.

    A kernel's five free TCP ports are found seconds before it binds them: of several kernels that start at once on a
    busy machine one may find a port taken, and die.
    """
    from traitlets.config import Config

    return Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"} if os.name == "posix" else {})


def _strip_metadata(path: Path) -> None:
    """Drop papermill's times and absolute paths from an executed notebook, so equal runs give equal files."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for holder in (notebook, *notebook["cells"]):
        for key in ("papermill", "execution", "widgets"):
            holder["metadata"].pop(key, None)
    for number, cell in enumerate(notebook["cells"]):
        cell["id"] = f"cell-{number}"  # papermill gives its injected cell a random one
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _end_with_parent() -> None:
    """Wait for the end of standard input, then end every process below this one, and this one."""
    import psutil

    while os.read(0, 1024):
        pass
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(_job_main(sys.argv[1]))
