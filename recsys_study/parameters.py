"""The parameters of a run: what the notebooks' parameters cells declare, and what a YAML file changes of it.

The cell tagged ``parameters`` is the one home of a name, its default and its comment; the default's type is the
parameter's type. A parameter file has a section for each notebook and holds only what differs.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic import model_validator as whole

from recsys_utils.base import MOST_RATED, InputError, project_root
from recsys_utils.data.catalogue import BUILT_IN

COMMON = ("workspace", "output", "seed", "jobs")  # every notebook declares them, and the run supplies them
OF_THE_RUN: dict[str, Any] = {"accuracy": "default", "budget_seconds": {}}
"""Keys of the run: ``full`` adds the accuracy table; seconds per stage are compared with what it took, no more."""
FILES = ("own_ratings", "beside")  # parameters that name files, the data set's apart
MAY_BE_EMPTY = ("base_settings",)
_PASSWORD = re.compile(r"://[^:/@\s]*:\S*@|password=", re.IGNORECASE)  # of a database URL


# ---- the notebooks' declarations


def code_cells(notebook: Path, tag: str | None = None) -> list[str]:
    """Sources of a notebook's code cells, or of those with a tag. Plain JSON: nbformat takes a second to import."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except FileNotFoundError:
        raise InputError(f"There is no notebook {notebook}; the chain needs it.") from None
    except (json.JSONDecodeError, KeyError) as error:
        raise InputError(f"{notebook} is not a notebook: {error}.") from None
    return [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code" and (tag is None or tag in cell["metadata"].get("tags", []))
    ]


def declared_parameters(notebook: Path) -> dict[str, Any]:
    """Names and defaults of the cell tagged ``parameters``: one plain literal per line.

    Raises
    ------
    InputError : not exactly one such cell, or a line that is no assignment of a literal to a name.
    """
    tagged = code_cells(notebook, "parameters")
    if len(tagged) != 1:
        raise InputError(f"{notebook} needs exactly one cell tagged 'parameters'; it has {len(tagged)}.")
    found: dict[str, Any] = {}
    for node in ast.parse(tagged[0]).body:
        try:
            if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
                raise ValueError
            found[node.targets[0].id] = ast.literal_eval(node.value)
        except ValueError:
            line = ast.get_source_segment(tagged[0], node)
            raise InputError(
                f"{notebook}: the parameters cell holds plain lines such as `k = 10`; found `{line}`."
            ) from None
    return found


def defaults(notebooks: Path) -> dict[str, Any]:
    """Every key of a parameter file with its default: seed, run-level keys, ``dataset`` and a section per notebook."""
    found: dict[str, Any] = {"seed": 0, **OF_THE_RUN, "dataset": {}}
    for notebook in sorted(notebooks.glob("*.ipynb")):
        if code_cells(notebook, "parameters"):
            declared = declared_parameters(notebook)
            found["seed"] = declared.get("seed", found["seed"])
            of_data = {name for name in declared if name.startswith("dataset_")}
            found["dataset"] |= {name.removeprefix("dataset_"): declared[name] for name in of_data}
            own = declared.keys() - {*COMMON, *OF_THE_RUN, *of_data}
            found[notebook.stem] = {name: declared[name] for name in declared if name in own}
    return found


def for_stage(settings: Mapping[str, Any], notebook: Path) -> dict[str, Any]:
    """What a notebook receives of a run's settings: its section, and what it declares of ``dataset``."""
    shared = {f"dataset_{name}": value for name, value in settings["dataset"].items()}
    declared = declared_parameters(notebook)
    return {**{name: shared[name] for name in declared if name in shared}, **settings.get(notebook.stem, {})}


# ---- a parameter file


def load(path: Path, settings: Sequence[str] = (), root: Path | None = None) -> dict[str, Any]:
    """The settings of a run: the defaults, laid over by a file and by ``key=value`` (dotted keys, YAML values).

    A key without its section is enough where one section only has it: ``list_length=20``. A file may say
    ``extends: other.yaml`` (from its own folder). Sections are merged key by key; any other value is replaced. Files
    that parameters name are looked for from ``root``, then from the current folder.

    Raises
    ------
    InputError : no such file, not YAML, an unknown name, a value of another type than the default's, or a parameter
        that names a file which is not there.
    """
    root = root or project_root()
    usual = defaults(root / "notebooks")
    found = _merged(usual, _read(path))
    for setting in settings:
        _override(found, setting)
    try:
        checked: dict[str, Any] = _checked("", found, usual)
        _check_run(checked)
        checked["dataset"] = Dataset.model_validate(found["dataset"], context={"root": root}).model_dump()
        for stage in usual.keys() - {"seed", "dataset", *OF_THE_RUN}:
            for name in checked[stage].keys() & {*FILES}:
                if checked[stage][name] != usual[stage][name]:
                    checked[stage][name] = _located_all(checked[stage][name], root)
    except ValidationError as error:
        raise InputError(f"{path}: {_explain(error)}.") from None
    except ValueError as error:
        raise InputError(f"{path}: {error}. The notebooks' parameters cells explain each name.") from None
    return checked


def _read(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping in a file, laid over that of the file it extends; ``above`` are the files that led here."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        known = ", ".join(sorted(p.name for p in path.parent.glob("*.yaml"))) or "none"
        why = f" ({above[-1]} extends it)" if above else ""
        raise InputError(f"There is no parameter file {path}{why}; {path.parent} holds: {known}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path} must be a mapping of parameters; found {type(raw).__name__}.")
    if "extends" not in raw:
        return raw
    base = path.parent / str(raw.pop("extends"))
    if base in (*above, path):
        raise InputError(f"{path} extends {base.name}, which leads back to itself.")
    found = _read(base, (*above, path))
    found.pop("budget_seconds", None)  # what one data set takes says nothing of another
    return _merged(found, raw)


def _merged(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    both = {key for key in base.keys() & top.keys() if isinstance(base[key], dict) and isinstance(top[key], dict)}
    return {**base, **top, **{key: base[key] | top[key] for key in both}}


def _override(settings: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise InputError(f"--set takes key=value, for example --set dataset.archive=ml-100k.zip; got {setting!r}.")
    *parents, last = key.split(".")
    first = key.split(".")[0]
    if first not in settings:
        homes = [section for section, values in settings.items() if isinstance(values, dict) and first in values]
        if len(homes) > 1:
            raise InputError(f"--set {setting}: say which is meant, {' or '.join(f'{p}.{key}' for p in homes)}.")
        parents = homes + parents
    node = settings
    for parent in parents:
        node[parent] = dict(node.get(parent, {})) if isinstance(node.get(parent, {}), dict) else None
        node = node[parent]
        if node is None:
            raise InputError(f"--set {setting}: {'.'.join(parents)} is not a section of the parameters.")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        node[last] = text


# ---- what a value may be


def _checked(where: str, value: Any, default: Any) -> Any:
    """``value``, checked against the default's type; ValueError says where, what was seen and what is allowed."""
    if where == "dataset":
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise ValueError(f"{where} = {_shown(value)}: must be {_kind(default)}, such as {default!r}")
    if default and not value and isinstance(value, list | dict) and where.split(".")[-1] not in MAY_BE_EMPTY:
        raise ValueError(f"{where} = {value!r}: must not be empty")
    if isinstance(value, list) and default:
        return [_checked(f"{where}.{at}", element, default[0]) for at, element in enumerate(value)]
    if isinstance(value, dict) and default:
        return _checked_names(where, value, default)
    return value


def _checked_names(where: str, value: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    if "binarise" in default:  # rankers of item pairs: their cap may be lowered
        default = {**default, "most_rated": [MOST_RATED] if isinstance(default["binarise"], list) else MOST_RATED}
    prefix = f"{where}." if where else ""
    for name in value.keys() - default.keys():
        close = get_close_matches(str(name), default, 1)
        hint = f"did you mean {prefix}{close[0]}?" if close else f"known are {', '.join(sorted(default))}"
        raise ValueError(f"{prefix}{name} is not a parameter; {hint}")
    for name in default.keys() - value.keys() - {"most_rated"}:
        raise ValueError(f"{prefix}{name} is missing")
    return {name: _checked(f"{prefix}{name}", element, default[name]) for name, element in value.items()}


def _check_run(settings: dict[str, Any]) -> None:
    if settings["seed"] < 0:
        raise ValueError(f"seed = {settings['seed']}: must be 0 or more")
    if settings["accuracy"] not in ("default", "full"):
        raise ValueError(f"accuracy = {settings['accuracy']!r}: must be default or full")
    for stage, seconds in settings["budget_seconds"].items():
        if stage not in settings or type(seconds) not in (int, float) or seconds <= 0:
            raise ValueError(f"budget_seconds.{stage} = {seconds!r}: must be a stage and a number greater than 0")


def _shown(value: Any) -> str:
    return "***" if _PASSWORD.search(str(value)) else repr(value)


def _kind(default: Any) -> str:
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    return kinds.get(type(default), "a mapping")


def _located_all(value: Any, root: Path) -> Any:
    return [_located(file, root) for file in value] if isinstance(value, list) else _located(value, root)


def _located(value: str, root: Path) -> str:
    """A file of the user's, named from the project root wherever possible; "" means none."""
    if not value or (root / value).is_file():
        return value
    here = Path(value).resolve()
    if not here.is_file():
        raise ValueError(f"there is no file {value} (looked in {root} and {Path.cwd()})")
    return here.relative_to(root).as_posix() if here.is_relative_to(root) else str(here)


def _dataset_file(value: str, info: ValidationInfo) -> str:
    return value if value in BUILT_IN or not info.context else _located(value, info.context["root"])


File = Annotated[str, AfterValidator(_dataset_file)]


class Dataset(BaseModel):
    """Where ratings and facts about items come from; 01_ingest declares the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    share: float = Field(gt=0, le=1)
    archive: File
    links: File
    review: File
    merge_doubles: bool
    catalogue: list[File]
    store: str
    store_required: bool
    store_scale: str
    ratings: File
    items: File
    columns: dict[str, str]
    scale: str
    liked: float | None
    zeros: Literal["auto", "rating", "none"]

    @field_validator("store")
    @classmethod
    def _no_secret(cls, store: str) -> str:
        if _PASSWORD.search(store):
            raise ValueError("parameters are published, so no password: name a variable, such as env:RECSYS_STORE_URL")
        return store

    @whole(mode="after")
    def _one_source(self) -> Self:
        if not self.ratings and (self.items or self.columns or self.scale or self.liked or self.zeros != "auto"):
            raise ValueError("items, columns, scale, liked and zeros describe the table that dataset.ratings names")
        if self.ratings and (self.archive or self.links):
            raise ValueError("dataset.ratings takes the place of an archive and its links: leave those empty")
        return self


def _explain(error: ValidationError) -> str:
    """One clause per problem: where, what was seen, what is allowed."""
    parts = []
    for problem in error.errors():
        where = ".".join(("dataset", *map(str, problem["loc"])))
        if problem["type"] == "extra_forbidden":
            close = get_close_matches(where.split(".")[-1], Dataset.model_fields, 1)
            parts.append(f"{where} is not a parameter" + (f"; did you mean dataset.{close[0]}?" if close else ""))
        else:
            parts.append(f"{where} = {_shown(problem['input'])}: {problem['msg'].removeprefix('Value error, ')}")
    return "; ".join(parts)
