"""Where joblib's tasks run: on this machine, or on a Dask cluster named by one address.

Every grid and experiment is a list of joblib tasks, so a cluster needs no other code: a notebook's process joins it and
joblib sends the tasks there. Ratings travel as the path of the run's parquet files and the rows that are meant
(``recsys_utils.data.interactions``), so the workers need these packages and the project's folder, shared.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from recsys_utils.base import InputError

VARIABLE = "RECSYS_CLUSTER"
_TIMEOUT = "20s"


@contextlib.contextmanager
def opened(address: str) -> Iterator[str]:
    """The address to join: of a running scheduler (checked), or of one started for ``local:N``; "" stays "".

    Raises
    ------
    InputError : the form of the address is neither; nobody answers there; Dask is not installed.

    >>> with opened("") as address:
    ...     address
    ''
    """
    if not address:
        yield ""
        return
    if not re.fullmatch(r"local:[1-9]\d*|(tcp|tls)://\S+:\d+", address):
        raise InputError(f"--cluster takes tcp://HOST:PORT of a Dask scheduler, or local:N; got {address!r}.")
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise InputError("--cluster needs Dask: pip install '.[cluster]' in the project's environment.") from None
    if workers := address.partition("local:")[2]:
        quiet = {"dashboard_address": None, "silence_logs": "ERROR"}
        with LocalCluster(n_workers=int(workers), threads_per_worker=1, **quiet) as started:
            yield started.scheduler_address
        return
    try:
        Client(address, timeout=_TIMEOUT).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"No Dask scheduler answers at {address} ({type(error).__name__}); start one with `dask scheduler` and "
            "workers with `dask worker`, or use --cluster local:N."
        ) from None
    yield address


def join() -> None:
    """Send this process's joblib tasks to the cluster that the environment names; without one, do nothing."""
    if address := os.environ.get(VARIABLE):
        import joblib
        from distributed import Client

        Client(address, timeout=_TIMEOUT).run(_one_thread)  # joblib takes the client that was made last
        joblib.parallel_config(backend="dask")


def _one_thread() -> None:
    """Numeric libraries of a worker use one thread, as on this machine: parallelism is over tasks."""
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
