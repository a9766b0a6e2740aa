"""What a notebook reads from earlier stages and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from IPython.display import display
from numpy.typing import NDArray

from recsys_study import dask_cluster, figures
from recsys_study.findings import Contrast, conclude
from recsys_utils.base import SCOPE, InputError, child_rng, child_seed, project_root
from recsys_utils.data.interactions import Interactions, read_interactions
from recsys_utils.models.content import FIELDS

METRIC_COLUMNS = ["stage", "protocol", "model", "variant", "segment", "metric", "value", "ci_low", "ci_high", "n"]
METRIC_KEY = METRIC_COLUMNS[:6]
PANEL = "panel"  # folder of 01_ingest: the ratings and splits of the users a large data set is studied on


@dataclass(frozen=True)
class Population:
    """Everyone's ratings and splits, and the users who are tested: all, or the panel drawn of a large data set.

    The other users are in every fit and in no test.
    """

    data: Interactions
    splits: pd.DataFrame
    tested: NDArray[np.bool_]  # (U,)

    @property
    def tested_ratings(self) -> NDArray[np.bool_]:
        return self.tested[self.data.user]

    @property
    def folds(self) -> NDArray[np.int8]:
        """(N,) folds of rating-cv5; -1 for the ratings of users who are not tested."""
        return np.where(self.tested_ratings, self.splits["rating_fold"], -1).astype(np.int8)

    @property
    def tested_alone(self) -> Interactions:
        """The tested users' ratings, with no rows for the others."""
        return self.data if self.tested.all() else self.data.alone(self.tested)


class Stage:
    """What a notebook reads from its run and adds to it: earlier outputs, seeds, tables, figures, metrics, findings.

    Parameters
    ----------
    name : the notebook's name without .ipynb
    workspace : folder of the run's stages; a relative path counts from the project root
    output : folder to write to, "" = show everything and write nothing (interactive use and notebook tests)
    seed : root seed of the run; :meth:`rng` and :meth:`seed_for` derive the notebook's own
    """

    def __init__(self, name: str, *, workspace: str, output: str = "", seed: int = 0) -> None:
        self.name = name
        self.workspace = project_root() / workspace
        self.output = project_root() / output if output else None
        self.root_seed = seed
        self._meta: dict[str, Any] | None = None  # as 01_ingest itself saves it
        self._metrics: list[pd.DataFrame] = []
        self.findings: list[dict[str, Any]] = []
        if self.output is not None:
            for folder in ("tables", "figures"):
                (self.output / folder).mkdir(parents=True, exist_ok=True)
        figures.theme()
        dask_cluster.join()

    # ---- what comes in

    def seed_for(self, *names: str | int) -> int:
        return child_seed(self.root_seed, self.name, *names)

    def rng(self, *names: str | int) -> np.random.Generator:
        return child_rng(self.root_seed, self.name, *names)

    def path(self, stage: str, file: str, *, everyone: bool = False) -> Path:
        """A file an earlier stage wrote; says which command makes it when it is absent.

        Of a large data set 01_ingest draws a panel of users; what it wrote of them is read unless ``everyone`` is.
        """
        found = self.workspace / stage / file
        panel = self.workspace / stage / PANEL / file
        if panel.exists() and not everyone:
            return panel
        if not found.exists():
            run = self.workspace.name
            raise InputError(
                f"{self.name} needs {file} of stage {stage}, which is not in {self.workspace}. "
                f"Run the chain up to it first: recsys run params/{run}.yaml --only {stage}"
            )
        return found

    def read(self, stage: str, file: str, *, everyone: bool = False) -> pd.DataFrame:
        path = self.path(stage, file, everyone=everyone)
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, keep_default_na=False, na_values=[""])

    def read_json(self, stage: str, file: str) -> Any:
        return json.loads(self.path(stage, file).read_text(encoding="utf-8"))

    @property
    def meta(self) -> dict[str, Any]:
        """What 01_ingest recorded about the data set (name, scale, licence, hashes, what it lacks)."""
        return self._meta or dict(self.read_json("01_ingest", "meta.json"))

    @property
    def chain(self) -> list[str]:
        """The stages of this run in the order they run in (not every run has every appendix)."""
        chain: list[str] = json.loads((self.workspace / "chain.json").read_text(encoding="utf-8"))
        return chain

    def has(self, what: Literal["time", "genres", "text"]) -> bool:
        """Whether the data have time stamps, genres, or any film metadata at all: stages degrade by it and say so."""
        if what == "time":
            return bool(self.meta["has_time"])
        items = self.items()
        fields = ("genres",) if what == "genres" else FIELDS
        return any(items[field].map(len).any() for field in fields)

    def interactions(self, *, everyone: bool = False) -> Interactions:
        return read_interactions(self.path("01_ingest", "interactions.parquet", everyone=everyone).parent)

    def items(self) -> pd.DataFrame:
        return self.read("01_ingest", "items.parquet")

    def splits(self, *, everyone: bool = False) -> pd.DataFrame:
        """One row a rating, aligned with :meth:`interactions`; the columns are documented in ``protocols``."""
        return self.read("01_ingest", "splits.parquet", everyone=everyone)

    def population(self) -> Population:
        data = self.interactions(everyone=True)
        return Population(data, self.splits(everyone=True), np.isin(data.users, self.interactions().users))

    # ---- what goes out

    def file(self, name: str) -> Path | None:
        """Where to write a file of this stage, or None when nothing is to be written."""
        return None if self.output is None else self.output / name

    def save(self, name: str, value: pd.DataFrame | dict[str, Any] | list[Any]) -> None:
        """Write a table (.parquet) or a JSON document (.json) for later stages."""
        if name == "meta.json" and isinstance(value, dict):
            self._meta = value
        path = self.file(name)
        if path is None:
            return
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".json":
            path.write_text(json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
        elif isinstance(value, pd.DataFrame):
            value.to_parquet(path, index=False, compression="zstd")
        else:
            raise TypeError(f"{name}: only a DataFrame goes into {path.suffix}")

    def table(self, name: str, frame: pd.DataFrame) -> pd.DataFrame:
        """Save tables/<name>.csv (6 significant decimals) and return the frame for display."""
        if self.output is not None:
            write_csv(frame, self.output / "tables" / f"{name}.csv")
        return frame

    def figure(self, figure: Any, name: str, caption: str) -> None:
        """Show a figure under its caption, and save figures/<name>.png and .svg; None: there is nothing to draw."""
        if figure is None:
            figures.markdown(f"No figure: {caption}")
            return
        figures.show(figure, caption, None if self.output is None else self.output / "figures" / name)

    def metrics(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Add rows to the run's metrics.csv; every row needs its interval and n, no key may occur twice."""
        rows = rows.assign(stage=self.name)
        missing = [c for c in METRIC_COLUMNS if c not in rows]
        if missing:
            raise ValueError(f"metric rows lack {', '.join(missing)}")
        rows = rows[METRIC_COLUMNS]
        everything = pd.concat([*self._metrics, rows], ignore_index=True)
        twice = everything.duplicated(METRIC_KEY)
        if twice.any():
            raise ValueError(f"metric row given twice: {everything.loc[twice, METRIC_KEY].iloc[0].to_dict()}")
        bare = rows[["value", "ci_low", "ci_high", "n"]].isna().any(axis=1)
        if bare.any():
            raise ValueError(f"metric row without value, interval or n: {rows[bare].iloc[0].to_dict()}")
        self._metrics.append(rows)
        return rows.drop(columns="stage").reset_index(drop=True)

    def conclude(self, id: str, contrasts: Sequence[Contrast] = (), **facts: Any) -> None:
        """Record a finding and show its answer, in the words of answers/<id>.md.j2, with its contrasts as a table."""
        finding = conclude(id, self.name, contrasts, facts, self.meta)
        record = finding.to_json()
        if any(f["id"] == id for f in self.findings):
            raise ValueError(f"finding {id!r} is given twice")
        self.findings.append(record)
        figures.markdown(
            "\n\n".join([f"**{finding.question}**", finding.answer, *(f"- {line}" for line in finding.caveats)])
        )
        if contrasts:
            shown = ["label", "of", "value", "ci_low", "ci_high", "n", "margin", "verdict"]
            display(pd.DataFrame(record["contrasts"])[shown])

    def close(self, *, fitted: int = 0, evaluated: int = 0) -> None:
        """Write metrics.csv, findings.json and scope.json; call once, in the last cell.

        Parameters
        ----------
        fitted : ratings that the stage's models learn from, test parts included; of several data sets the largest
        evaluated : users whom its intervals are over, at most
        """
        if self.output is None:
            return
        self.save(SCOPE, {"ratings_fitted": fitted, "users_evaluated": evaluated})
        rows = pd.concat(self._metrics, ignore_index=True) if self._metrics else pd.DataFrame(columns=METRIC_COLUMNS)
        write_csv(rows, self.output / "metrics.csv")
        self.save("findings.json", self.findings)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Write a CSV whose bytes depend on the values alone (6 decimals, \\n, UTF-8)."""
    frame.to_csv(path, index=False, float_format="%.6f", lineterminator="\n", encoding="utf-8")
