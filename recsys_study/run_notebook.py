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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys_study import dask_cluster as cluster
from recsys_utils.base import InputError

_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA")}


def start_job(job: dict[str, Any], root: Path, log: Any, keep_open: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    """Start ``python -m recsys_study.run_notebook``: it tells its progress on stdout and ends when its stdin closes."""
    environment = os.environ | _ONE_THREAD
    environment |= {"PYTHONHASHSEED": "0", "RECSYS_ROOT": str(root), "JUPYTER_PREFER_ENV_PATH": "1"}
    environment[cluster.VARIABLE] = job.get("cluster", "")
    return subprocess.Popen(
        [sys.executable, "-m", "recsys_study.run_notebook", json.dumps(job)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, pass_fds=keep_open,
        start_new_session=True,  # Ctrl-C reaches the run, which then ends its processes in order
    )  # fmt: skip


class Progress:
    """Shows where every stage of a run is: a live table on a terminal, one line per event elsewhere."""

    def __init__(self, stages: list[str], plain: bool | None = None) -> None:
        from rich.console import Console

        self.console = Console(highlight=False)
        self.plain = plain if plain is not None else not self.console.is_terminal
        self.lock = threading.Lock()
        self.state = dict.fromkeys(stages, "waits")
        self.began: dict[str, float] = {}
        self.took: dict[str, float] = {}
        self.told: dict[str, float] = {}
        self.start_time = time.perf_counter()

    def __enter__(self) -> Progress:
        from rich.live import Live

        self.live = (
            None if self.plain else Live(get_renderable=self._render, console=self.console, refresh_per_second=4)
        )
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()
        if not self.began:
            self.console.print("Nothing changed since the last run; ", end="")
        self.console.print(f"total {duration(time.perf_counter() - self.start_time)}")

    def skip(self, stage: str) -> None:
        self._set(stage, "unchanged")

    def wait(self, stage: str, reason: str) -> None:
        self._set(stage, f"due: {reason}")

    def start(self, stage: str) -> None:
        self.began[stage] = time.perf_counter()
        self._set(stage, "starts")

    def cell(self, stage: str, number: int, of: int) -> None:
        now = time.perf_counter()
        if not self.plain or now - self.told.get(stage, self.began[stage]) >= 10:
            self.told[stage] = now
            self._set(stage, f"cell {number}/{of}, {duration(now - self.began[stage])}")

    def finish(self, stage: str, budget: float | None = None) -> None:
        took = self.took[stage] = time.perf_counter() - self.began[stage]
        over = f", over its budget of {duration(budget)}" if budget and took > budget else ""
        self._set(stage, f"done in {duration(took)}{over}")

    def fail(self, stage: str, message: str) -> None:
        self._set(stage, "failed")
        if message:
            self.console.print(message, markup=False, soft_wrap=True)

    def _set(self, stage: str, state: str) -> None:
        with self.lock:
            self.state[stage] = state
            if self.plain and state != "unchanged":
                self.console.print(f"{stage:<20} {state}", markup=False, soft_wrap=True)

    def _render(self) -> Any:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        now = time.perf_counter()
        for stage, state in self.state.items():
            running = stage in self.began and state.startswith(("cell", "starts"))
            elapsed = duration(now - self.began[stage]) if running else ""
            style = {"u": "dim", "w": "dim", "d": "", "c": "bold", "s": "bold", "f": "bold red"}[state[0]]
            table.add_row(stage, state.split(",")[0] if running else state, elapsed, style=style)
        return table


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
