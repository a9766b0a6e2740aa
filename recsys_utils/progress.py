"""Where every stage of a run is: a live table on a terminal, one line per event elsewhere."""

from __future__ import annotations

import threading
import time
from typing import Any


class Progress:
    """Shows where every stage is: a live table on a terminal, one line per event elsewhere."""

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

    def finish(self, stage: str) -> None:
        self.took[stage] = time.perf_counter() - self.began[stage]
        self._set(stage, f"done in {duration(self.took[stage])}")

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
