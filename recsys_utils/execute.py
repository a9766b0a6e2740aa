"""One process per notebook (or site): started by the pipeline, tells where it is, and takes its children with it.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys_utils import cluster
from recsys_utils.interfaces import InputError

_ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "NUMBA")}


def start_job(job: dict[str, Any], root: Path, log: Any, keep_open: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    """Start ``python -m recsys_utils.execute``: it tells its progress on stdout and ends when its stdin closes."""
    environment = os.environ | _ONE_THREAD
    environment |= {"PYTHONHASHSEED": "0", "RECSYS_ROOT": str(root), "JUPYTER_PREFER_ENV_PATH": "1"}
    environment[cluster.VARIABLE] = job.get("cluster", "")
    return subprocess.Popen(
        [sys.executable, "-m", "recsys_utils.execute", json.dumps(job)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, pass_fds=keep_open,
        start_new_session=True,  # Ctrl-C reaches the run, which then ends its processes in order
    )  # fmt: skip


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
            from recsys_utils import report

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
