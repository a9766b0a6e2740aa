"""How the benchmarks measure: each call in a process of its own, watched from outside, beside its peers.

A contender is a generator function: what it does before its first ``yield`` is preparation, the clock runs from there
to its ``return``, and what it returns is its answer, which is compared with that of the first contender. What takes
less than a second is repeated, and the fastest counts. Numeric threads are one in every process.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import sys
import textwrap
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
from joblib.externals.loky import get_reusable_executor

from recsys_study import bench_tables as speed
from recsys_utils.base import InputError

THREADS = ("OMP_NUM", "OPENBLAS_NUM", "MKL_NUM", "NUMEXPR_NUM", "NUMBA_NUM")
PACKAGES = ("numpy", "scipy", "pandas", "polars", "numba", "scikit-learn", "scikit-surprise", "implicit")
WIDTH = 120  # of remarks in the terminal
POLL = 0.01  # seconds between looks at a process's memory
ENOUGH, MOST_RUNS = 1.0, 5  # seconds after which a call is not repeated, and how often it is at most

NAMES = ("grid", "knn", "neighbours", "ingest", "evaluate", "latent_traits", "pipeline")

LEGEND = (
    "*x* is how many times as long a peer takes as the first row of the same task and size, *x CPU* the same of CPU "
    "seconds, which say more on a busy machine. *Private* is the peak of anonymous memory of the whole process, "
    "imports included; *file* that of pages of files, which the system can drop. *Same* says whether the answers "
    "agree; what was compared stands below. What takes less than a second is the fastest of up to five runs."
)
CAPTION = "CPU seconds by size of the input, both axes logarithmic; the fitted growth is n to the power shown."

Row = dict[str, Any]
Check = Callable[[Any, Any], tuple[bool, str]]


@dataclass(frozen=True)
class Contender:
    """Somebody who does a task.

    Parameters
    ----------
    name : of the software, with the function that is called
    work : the generator function (see the module), at module level, since another process imports it
    arguments : of ``work``; must pickle
    share : the part of the task that is really done; costs are divided by it
    calls : how often ``work`` does the task; costs are divided by it
    check : of a peer: whether its answer is ours, and what was compared
    extra : further columns of the row, from the answer
    note : what a reader has to know
    needs : a package that may be absent, by the name pip knows
    jobs : processes that ``work`` itself starts
    """

    name: str
    work: Callable[..., Generator[None, None, Any]]
    arguments: tuple[Any, ...] = ()
    share: float = 1.0
    calls: int = 1
    check: Check | None = None
    extra: Callable[[Any], Row] | None = None
    note: str = ""
    needs: str = ""
    jobs: int = 1


def command(
    names: Sequence[str], *, full: bool, target: Path | None, show: Callable[[pd.DataFrame], None]
) -> None:  # fmt: skip
    """What `recsys bench` does; ``show`` prints a table."""
    found = everything(names, full=full)
    if target is not None:
        save(found, target)
    print(textwrap.fill(found["about"].replace("*", ""), WIDTH))
    for name, table in speed.tables(found):
        print(f"\n{name}")
        show(table)
        print("\n".join(textwrap.fill(remark, WIDTH, subsequent_indent="  ") for remark in found["remarks"][name]))


def everything(names: Sequence[str] = (), *, full: bool = False) -> Row:
    """Run benchmarks, all by default; returns what bench.json holds.

    machine, full, rows (one a contender, see :func:`compare`), growth (exponents), and for readers: about, figure (its
    caption) and remarks by benchmark.

    Raises
    ------
    InputError : a name that is no benchmark's.
    """
    if unknown := [name for name in names if name not in NAMES]:
        raise InputError(f"There is no benchmark {unknown[0]!r}; there are {', '.join(NAMES)}.")
    started, rows = machine(), []
    for name in dict.fromkeys(names or NAMES):
        print(f"Measuring {name}", file=sys.stderr)
        rows += importlib.import_module(f"benchmarks.{name}").run(full=full)
    found = {"machine": started, "full": full, "rows": rows, "growth": growth(rows)}
    return found | {"about": about(started, full=full), "figure": CAPTION, "remarks": remarks(found)}


def about(machine: Row, *, full: bool) -> str:
    """What a table says, and on which machine it was measured."""
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    return (
        f"Measured by `recsys bench{' --full' * full}`, in one run, on {machine['cores']} cores ({machine['cpu']}), "
        f"{machine['memory_gb']} GB, {machine['system']}, Python {machine['python']}, {packages}; load at the start "
        f"{machine['load_at_start']}. {LEGEND}"
    )


def remarks(found: Row) -> dict[str, list[str]]:
    """Of each benchmark: what was compared at the largest size, what to know, who is absent, and how costs grow."""
    last = {(row["benchmark"], row["task"], row["who"]): row for row in found["rows"]}
    said: dict[str, list[str]] = {}
    for (benchmark, task, who), row in last.items():
        text = "; ".join(row[key] for key in ("compared", "note") if key in row)
        said.setdefault(benchmark, []).extend([f"{who} ({task}): {text}"] if text else [])
    for g in found["growth"]:
        said[g["benchmark"]].append(f"{g['who']} ({g['task']}): CPU seconds grow as size^{g['exponent']:.2f}")
    return said


def save(bench: Row, path: Path) -> None:
    """Write FILE.json and, where three sizes were measured, FILE.png."""
    from benchmarks.picture import growth_figure

    path.write_text(json.dumps(bench, indent=1) + "\n", encoding="utf-8")
    if bench["growth"]:
        growth_figure(bench).savefig(path.with_suffix(".png"), metadata={"Software": None})


def compare(about: Row, contenders: Sequence[Contender]) -> list[Row]:
    """A row a contender; the first is ours, and the others' rows say how much more they take and whether they agree.

    ``about`` names the benchmark, task, size and unit. Ratios are peer / ours, of wall seconds and of CPU seconds.
    """
    rows: list[Row] = []
    ours: Any = None
    for contender in contenders:
        row = about | {"who": contender.name, "peer": bool(rows)}
        if contender.needs and find_spec(contender.needs) is None:
            rows.append(row | {"note": f"not installed: pip install {contender.needs}"})
            continue
        found, answer = measured(contender)
        per = contender.share * contender.calls
        row |= {k: v / per if k in ("seconds", "cpu_seconds") else v for k, v in found.items()}
        if contender.extra is not None:
            row |= contender.extra(answer)
        if rows and "seconds" in rows[0]:
            row |= {name: row[k] / rows[0][k] for k, name in (("seconds", "ratio"), ("cpu_seconds", "cpu_ratio"))}
        if contender.check is not None:
            same, compared = contender.check(ours, answer)
            row |= {"same": bool(same), "compared": compared}
        if contender.note:
            row["note"] = contender.note
        if contender.share != 1:
            row["note"] = f"{contender.share:.1%} of the task was done; seconds are scaled up"
        ours = answer if not rows else ours
        rows.append({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()})
    return rows


def measured(contender: Contender) -> tuple[Row, Any]:
    """Seconds, CPU seconds and memory in MB of one contender, and its answer.

    ``anonymous_mb`` is the largest private memory of the process and its children while it worked, ``start_mb`` what it
    was when the clock started (the imports alone take a hundred), ``mapped_mb`` the largest amount of pages of files,
    which the system can drop and read again.
    """
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(there, replace(contender, check=None, extra=None)))
    with _one_thread():
        process.start()
    there.close()
    watched = psutil.Process(process.pid)
    peaks: list[tuple[float, float]] = []
    try:
        here.recv()
        peaks.append(_memory(watched, contender.jobs > 1))
        here.send("go")
        while not here.poll(POLL):
            peaks.append(_memory(watched, contender.jobs > 1))
        peaks.append(_memory(watched, contender.jobs > 1))
        found, answer = here.recv()
        here.send("bye")
    except EOFError:
        raise RuntimeError(f"{contender.name} ended without an answer; what it said stands above.") from None
    finally:
        process.join()
    anonymous, mapped = np.max(peaks, axis=0)
    return found | {"anonymous_mb": anonymous, "start_mb": peaks[0][0], "mapped_mb": mapped}, answer


def _work(pipe: Connection, contender: Contender) -> None:
    """In the other process: prepare, wait for the start, work, tell."""
    clock = cpu_seconds if contender.jobs > 1 else time.process_time
    best: Row | None = None
    spent, runs, answer = 0.0, 0, None
    while spent < ENOUGH and runs < MOST_RUNS:
        steps = contender.work(*contender.arguments)
        next(steps)
        if not runs:
            pipe.send("ready")
            pipe.recv()
        wall, cpu = time.perf_counter(), clock()
        try:
            next(steps)
            raise AssertionError(f"{contender.name} yields twice")
        except StopIteration as stop:
            took = {"seconds": time.perf_counter() - wall, "cpu_seconds": clock() - cpu}
            answer = stop.value
        best = took if best is None or took["cpu_seconds"] < best["cpu_seconds"] else best
        spent, runs = spent + took["seconds"], runs + 1
    pipe.send((best, answer))
    pipe.recv()
    if contender.jobs > 1:  # joblib's idle workers stay for five minutes, and this process would wait for them
        get_reusable_executor().shutdown(kill_workers=True)


def cpu_seconds() -> float:
    """Of this process and of its children, whether they have ended or still run."""
    own = psutil.Process().cpu_times()
    alive = [p.cpu_times() for p in psutil.Process().children(recursive=True)]
    ended = own.user + own.system + own.children_user + own.children_system
    return float(ended + sum(t.user + t.system for t in alive))


def _memory(process: psutil.Process, children: bool) -> tuple[float, float]:
    """Anonymous and file-backed MB of a process, and of its children where it has some."""
    anonymous, mapped = 0.0, 0.0
    for one in [process, *(process.children(recursive=True) if children else [])]:
        with contextlib.suppress(psutil.NoSuchProcess):
            info = one.memory_info()
            shared = getattr(info, "shared", 0)  # known on Linux only
            anonymous, mapped = anonymous + (info.rss - shared) / 1e6, mapped + shared / 1e6
    return anonymous, mapped


@contextlib.contextmanager
def _one_thread() -> Generator[None, None, None]:
    before = dict(os.environ)
    os.environ.update({f"{name}_THREADS": "1" for name in THREADS})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def closest(name: str, limit: float) -> Check:
    """Agreement of two arrays, or dictionaries of arrays (those names that both have), by their largest difference."""

    def check(ours: Any, theirs: Any) -> tuple[bool, str]:
        if not isinstance(ours, dict):
            ours, theirs = {name: ours}, {name: theirs}
        shared = [key for key in ours if key in theirs]
        gaps = [
            np.max(np.abs(np.nan_to_num(ours[k], nan=-9.0) - np.nan_to_num(theirs[k], nan=-9.0)), initial=0.0)
            for k in shared
        ]
        return bool(shared) and max(gaps) <= limit, f"{name}: largest difference {max(gaps):.1e} (limit {limit:.0e})"

    return check


def growth(rows: Iterable[Row]) -> list[Row]:
    """Exponent b of CPU seconds ~ size^b for whoever was measured at three sizes or more, by least squares of logs."""
    series: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if "cpu_seconds" in row:
            key = row["benchmark"], row["task"], row["who"]
            series.setdefault(key, []).append((row["size"], max(row["cpu_seconds"], 1e-6)))
    found = []
    for key, points in series.items():
        if len({size for size, _ in points}) >= 3:
            size, seconds = np.log(np.array(points, dtype=np.float64).T)
            exponent = round(float(np.polyfit(size, seconds, 1)[0]), 2)
            found.append(
                dict(zip(("benchmark", "task", "who"), key, strict=True)) | {"exponent": exponent, "sizes": len(points)}
            )
    return found


def machine() -> Row:
    """What the numbers were measured on; names no user, host or path."""
    versions = {name: version(name) for name in PACKAGES if find_spec(_module(name))}
    return {
        "cpu": _cpu_model(), "cores": os.cpu_count(), "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.system(), "python": sys.version.split()[0], "packages": versions,
        "load_at_start": round(psutil.getloadavg()[0], 1),
    }  # fmt: skip


def _module(package: str) -> str:
    return {"scikit-learn": "sklearn", "scikit-surprise": "surprise"}.get(package, package)


def _cpu_model() -> str:
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
