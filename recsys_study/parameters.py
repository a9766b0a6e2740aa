"""The parameters of a run: one YAML file, checked against a schema before anything starts."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from recsys_utils.base import MOST_RATED, InputError
from recsys_utils.data.catalogue import BUILT_IN

Cap = Annotated[int, Field(ge=10, le=MOST_RATED)]
_PASSWORD = re.compile(r"://[^:/@\s]*:\S*@|password=", re.IGNORECASE)  # of a database URL


def _located(value: str, info: ValidationInfo) -> str:
    """A file of the user's, named from the project root wherever possible; "" means none."""
    root = (info.context or {}).get("root")
    if root is None or not value or value in BUILT_IN or (root / value).is_file():
        return value
    here = Path(value).resolve()
    if not here.is_file():
        raise ValueError(f"there is no file {value} (looked in {root} and {Path.cwd()})")
    return here.relative_to(root).as_posix() if here.is_relative_to(root) else str(here)


File = Annotated[str, AfterValidator(_located)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=False, frozen=True)


class Dataset(_Section):
    name: str
    share: float = Field(default=1.0, gt=0, le=1)
    archive: File = ""
    links: File = ""
    review: File = ""
    merge_doubles: bool = False
    catalogue: list[File] = ["genome", "tags", "graph"]
    store: str = ""
    store_required: bool = False
    store_scale: str = ""
    ratings: File = ""
    items: File = ""
    columns: dict[str, str] = {}
    scale: str = ""
    liked: float | None = None
    zeros: Literal["auto", "rating", "none"] = "auto"

    @field_validator("store")
    @classmethod
    def _no_secret(cls, store: str) -> str:
        if _PASSWORD.search(store):
            raise ValueError("parameters are published, so no password: name a variable, such as env:RECSYS_STORE_URL")
        return store

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if not self.ratings and (self.items or self.columns or self.scale or self.liked or self.zeros != "auto"):
            raise ValueError("items, columns, scale, liked and zeros describe the table that dataset.ratings names")
        if self.ratings and (self.archive or self.links):
            raise ValueError("dataset.ratings takes the place of an archive and its links: leave those empty")
        return self


class Ingest(_Section):
    rating_folds: int = Field(ge=2)
    user_folds: int = Field(ge=2)
    item_folds: int = Field(ge=2)
    random_orders: int = Field(ge=1)
    stratified_seeds: int = Field(ge=1)
    panel: int = Field(ge=100)


class Content(_Section):
    max_features: int = Field(ge=10)
    cast: Literal["all", "none"]
    fields: list[str]


class _Searched(_Section):
    """A grid, the product of its lists: a single setting would leave the search nothing to compare."""

    @model_validator(mode="after")
    def _two_settings(self) -> Self:
        if (settings := math.prod(len(values) for values in self.model_dump().values())) < 2:
            raise ValueError(f"a grid needs two settings or more, and this one has {settings}: give a list two values")
        return self


class SvdGrid(_Searched):
    n_factors: list[int]
    n_epochs: list[int]
    lr: list[float]
    reg: list[float]


class KnnGrid(_Searched):
    kind: list[Literal["KNNWithMeans", "KNNBaseline"]]
    similarity: list[Literal["pearson_baseline", "msd", "cosine"]]
    user_based: list[bool]
    k: list[int]
    min_support: list[int]


class _Capped(_Section):
    """A section that passes on what the file says: a usual cap stays unsaid."""

    @model_serializer(mode="wrap")
    def _as_said(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if name in self.model_fields_set}


class ItemKnnGrid(_Capped):
    k: list[int]
    shrink: list[float]
    binarise: list[Literal["any", "liked"]]
    most_rated: list[Cap] = [MOST_RATED]


class EaseGrid(_Capped):
    reg: list[float]
    binarise: list[Literal["any", "liked"]]
    most_rated: list[Cap] = [MOST_RATED]


class Grid(_Section):
    svd_grid: SvdGrid
    knn_grid: KnnGrid
    inner_folds: int = Field(ge=2)
    inner_tried: int = Field(ge=1)
    item_knn_grid: ItemKnnGrid
    ease_grid: EaseGrid
    training_seeds: int = Field(ge=1)
    stratified_runs: int = Field(ge=1)
    accuracy: Literal["default", "full"]


class NeighboursGrid(_Section):
    k: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    min_overlap: list[Annotated[int, Field(ge=2)]] = Field(min_length=1)
    shrinkage: list[Annotated[float, Field(ge=0)]] = Field(min_length=1)
    min_votes: int = Field(ge=1)
    sizes: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    tune_size: int = Field(ge=1)
    imdb_rating: float
    imdb_votes: int
    own_ratings: list[File] = []


class SvdSetting(_Section):
    n_factors: int = Field(ge=1)
    n_epochs: int = Field(ge=1)
    lr: float = Field(gt=0)
    reg: float = Field(gt=0)


class KnnSetting(_Section):
    kind: Literal["KNNWithMeans", "KNNBaseline"]
    similarity: Literal["pearson_baseline", "msd", "cosine"]
    user_based: bool
    k: int = Field(ge=1)
    min_support: int = Field(ge=1)


class ItemKnnSetting(_Capped):
    k: int = Field(ge=1)
    shrink: float = Field(ge=0)
    binarise: Literal["any", "liked"]
    most_rated: Cap = MOST_RATED


class EaseSetting(_Capped):
    reg: float = Field(gt=0)
    binarise: Literal["any", "liked"]
    most_rated: Cap = MOST_RATED


class Traits(_Section):
    n_factors: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    sweeps: int = Field(ge=1)
    held_out: float = Field(ge=0, le=0.5)
    left_out: int = Field(ge=100)


class Alpha(_Section):
    sizes: list[int]
    alpha_step: float = Field(gt=0, le=0.5)
    svd_settings: list[SvdSetting] = Field(min_length=1)
    knn_settings: list[KnnSetting] = Field(min_length=1)
    item_knn_settings: list[ItemKnnSetting] = Field(min_length=1)
    ease_settings: list[EaseSetting] = Field(min_length=1)
    stratified_runs: int = Field(ge=1)


Share = Annotated[float, Field(ge=0, le=1)]


class Diversity(_Section):
    ratios: list[Share] = Field(min_length=1)
    lambdas: dict[str, list[Share]]
    base_settings: list[EaseSetting]
    base_alphas: list[Share]
    max_loss: float = Field(ge=0, lt=1)


class Elicitation(_Section):
    counts: list[Annotated[int, Field(ge=0)]] = Field(min_length=3)
    n_factors: int = Field(ge=1)


class Freshness(_Section):
    ages: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    refit_days: int = Field(ge=1)
    warm_up_days: int = Field(ge=1)
    max_refits: int = Field(ge=1)
    cached_sizes: list[Annotated[int, Field(ge=2)]] = Field(min_length=1)
    new_ratings: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    fold_in_sizes: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    fold_in_folds: int = Field(ge=1)
    ease_max_items: int = Field(ge=0)
    ease_setting: EaseSetting
    svd_setting: SvdSetting
    knn_setting: KnnSetting


class Export(_Section):
    list_length: int = Field(ge=1)
    own_ratings: File = ""


class Findings(_Section):
    beside: File = ""


class Parameters(_Section):
    """Everything a run depends on; a section per stage holds exactly what its notebook declares."""

    seed: int = Field(ge=0)
    dataset: Dataset
    ingest: Ingest = Field(alias="01_ingest")
    content: Content = Field(alias="02_content_tfidf")
    grid: Grid = Field(alias="03_cf_grid_search")
    neighbours: NeighboursGrid = Field(alias="04_neighbours")
    traits: Traits = Field(alias="05_latent_traits")
    alpha: Alpha = Field(alias="06_alpha_curve")
    diversity: Diversity = Field(alias="07_diversity")
    elicitation: Elicitation = Field(alias="08_elicitation")
    freshness: Freshness = Field(alias="09_freshness")
    export: Export = Field(alias="10_export")
    findings: Findings = Field(alias="11_findings", default_factory=Findings)
    budget_seconds: dict[str, Annotated[float, Field(gt=0)]] = {}  # decides nothing: run.json sets it beside what was

    @field_validator("budget_seconds")
    @classmethod
    def _of_stages(cls, budgets: dict[str, float]) -> dict[str, float]:
        stages = {field.alias for field in cls.model_fields.values()} - {None}
        if unknown := sorted(budgets.keys() - stages):
            raise ValueError(f"{unknown[0]} is no stage; there are {', '.join(sorted(filter(None, stages)))}")
        return budgets

    def for_stage(self, stage: str) -> dict[str, Any]:
        """What the notebook of ``stage`` receives from this file: its section, and for 01_ingest the data set."""
        for name, field in type(self).model_fields.items():
            if field.alias == stage:
                values: dict[str, Any] = getattr(self, name).model_dump()
                if stage == "01_ingest":
                    values = {f"dataset_{k}": v for k, v in self.dataset.model_dump().items()} | values
                return values
        raise KeyError(stage)


def load(path: Path, settings: list[str] | None = None, root: Path | None = None) -> Parameters:
    """Read a parameter file, apply ``key=value`` overrides (dotted keys, YAML values) and check the result.

    A key without its section is enough where one section only has it: ``accuracy=full``.

    A file may say ``extends: other.yaml`` (from its own folder) and then holds only what differs: sections are merged
    key by key, everything else replaces what the other file says.

    With a project ``root``, files that parameters name are looked for from there, then from the current folder.

    Raises
    ------
    InputError : no such file, not YAML, an unknown or missing parameter, a value of the wrong type or range, or a
        parameter that names a file which is not there.
    """
    raw = _read(path, ())
    for setting in settings or []:
        _override(raw, setting)
    try:
        return Parameters.model_validate(raw, context={"root": root})
    except ValidationError as error:
        raise InputError(_explain(path, error)) from None


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
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
    base = raw.pop("extends")
    if not isinstance(base, str) or not base:
        raise InputError(f"{path}: extends takes the name of a parameter file; found {base!r}.")
    if path.parent / base in (*above, path):
        raise InputError(f"{path} extends {base}, which leads back to itself.")
    found = _read(path.parent / base, (*above, path))
    found.pop("budget_seconds", None)  # what one data set takes says nothing of another
    return _laid_over(found, raw)


def _laid_over(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = base | top
    for key in base.keys() & top.keys():
        if isinstance(base[key], dict) and isinstance(top[key], dict):
            merged[key] = base[key] | top[key]
    return merged


def _override(raw: dict[str, Any], setting: str) -> None:
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise InputError(f"--set takes key=value, for example --set dataset.archive=ml-100k.zip; got {setting!r}.")
    *parents, last = key.split(".")
    if not parents and key not in raw:
        parents = [section for section, values in raw.items() if isinstance(values, dict) and key in values]
        if len(parents) > 1:
            raise InputError(f"--set {setting}: say which is meant, {' or '.join(f'{p}.{key}' for p in parents)}.")
    node: Any = raw
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise InputError(f"--set {setting}: {'.'.join(parents)} is not a section of the parameters.")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        node[last] = text


def _explain(path: Path, error: ValidationError) -> str:
    """One sentence per problem: where, what was seen, what is allowed."""
    parts = []
    for problem in error.errors():
        where = ".".join(str(p) for p in problem["loc"])
        if problem["type"] == "extra_forbidden":
            parts.append(f"{where} is not a parameter")
        elif problem["type"] == "missing":
            parts.append(f"{where} is missing")
        else:
            seen = "***" if _PASSWORD.search(str(problem["input"])) else repr(problem["input"])
            told = problem["msg"].removeprefix("Value error, ")
            parts.append(f"{where} = {seen}: {told[0].lower() + told[1:]}")
    listed = "; ".join(parts)
    return f"The parameters of {path} can't be used: {listed}. The comments in params/ml-100k.yaml explain each key."
