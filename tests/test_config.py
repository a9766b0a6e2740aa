"""Parameter files: what is accepted, what is refused, and what the message names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recsys_study import parameters, pipeline
from recsys_utils.base import InputError

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "params" / "smoke.yaml"
NOTEBOOKS = ROOT / "notebooks"


def load(*settings: str, path: Path = SMOKE, root: Path = ROOT) -> dict[str, Any]:
    return parameters.load(path, settings, root)


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.name)
def test_every_parameter_file_supplies_what_the_notebooks_declare(path: Path) -> None:
    settings = load(path=path)
    for stage in pipeline.chain(settings):
        notebook = NOTEBOOKS / f"{stage}.ipynb"
        given = {*parameters.COMMON, *parameters.for_stage(settings, notebook)}
        assert set(parameters.declared_parameters(notebook)) == given


def test_the_published_run_is_the_defaults() -> None:
    usual, published = parameters.defaults(NOTEBOOKS), load(path=ROOT / "params" / "ml-100k.yaml")
    assert published | {"budget_seconds": {}} == usual


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("nonsense=1", ["nonsense is not a parameter"]),
        ("07_diversity.ratio=1", ["07_diversity.ratio is not", "did you mean 07_diversity.ratios?"]),
        ("dataset.archve=x.zip", ["dataset.archve", "dataset.archive?"]),
        ("seed=many", ["seed = 'many'", "whole number"]),
        ("seed=true", ["seed = True", "whole number"]),
        ("seed=-1", ["seed = -1"]),
        ("accuracy=half", ["accuracy = 'half'", "full"]),
        ("rating_folds=5.0", ["01_ingest.rating_folds = 5.0", "whole number"]),
        ("fields=genres", ["02_content_tfidf.fields = 'genres'", "a list"]),
        ("fields=[]", ["02_content_tfidf.fields", "empty"]),
        ("fields=[genres, 1]", ["02_content_tfidf.fields.1 = 1", "text"]),
        ("svd_grid={n_factors: [5]}", ["03_cf_grid_search.svd_grid.", "missing"]),
        ("svd_grid.lr=fast", ["03_cf_grid_search.svd_grid.lr = 'fast'"]),
        ("seed", ["--set takes key=value"]),
        ("seed.deeper=1", ["seed is not a section"]),
        ("dataset.archive=/no/such.zip", ["dataset.archive", "there is no file /no/such.zip"]),
        ("dataset.catalogue=[tgas]", ["dataset.catalogue.0", "tgas"]),
        ("10_export.own_ratings=none.csv", ["there is no file none.csv"]),
        ("stratified_runs=3", ["03_cf_grid_search.stratified_runs or 06_alpha_curve.stratified_runs"]),
        ("budget_seconds.02_ingest=5", ["budget_seconds.02_ingest"]),
        ("budget_seconds.01_ingest=0", ["greater than 0"]),
    ],
)
def test_a_bad_setting_is_named(setting: str, named: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        load(setting)
    assert not [words for words in named if words not in str(caught.value)]
    assert "smoke.yaml" in str(caught.value) or "--set" in str(caught.value)


def test_settings_are_yaml_values_under_dotted_keys() -> None:
    settings = load("07_diversity.ratios=[0, 0.2]", "seed=7", "accuracy=full", "list_length=4", "svd_grid.reg=[1]")
    assert settings["07_diversity"]["ratios"] == [0.0, 0.2]
    assert (settings["seed"], settings["accuracy"], settings["10_export"]["list_length"]) == (7, "full", 4)
    usual = load()["03_cf_grid_search"]["svd_grid"]
    assert settings["03_cf_grid_search"]["svd_grid"] == usual | {"reg": [1.0]}


def test_a_ranker_may_have_its_cap_lowered() -> None:
    assert load("ease_grid={reg: [1], binarise: [any], most_rated: [500]}")["03_cf_grid_search"]["ease_grid"] == {
        "reg": [1.0], "binarise": ["any"], "most_rated": [500]
    }  # fmt: skip


def test_files_are_found_from_the_root_or_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mine.zip", "keywords.csv"):
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    found = load("dataset.archive=mine.zip", "dataset.catalogue=[tags, keywords.csv]", "10_export.own_ratings=mine.zip")
    assert found["dataset"]["archive"] == found["10_export"]["own_ratings"] == str(tmp_path / "mine.zip")
    assert found["dataset"]["catalogue"] == ["tags", str(tmp_path / "keywords.csv")]
    assert load("dataset.review=data/README.md")["dataset"]["review"] == "data/README.md"


@pytest.mark.parametrize(("text", "named"), [("- a\n- b", "mapping"), ("a: [", "not valid YAML"), ("a: 1", "a is not")])
def test_a_file_that_is_no_parameter_file(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError, match=named):
        load(path=tmp_path / "p.yaml")


def test_a_missing_file_is_answered_with_the_files_there_are(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("")
    with pytest.raises(InputError, match=r"holds: there\.yaml"):
        load(path=tmp_path / "absent.yaml")


def test_a_file_that_extends_another_holds_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(SMOKE.read_text(encoding="utf-8") + "\nbudget_seconds: {01_ingest: 5}\n")
    (tmp_path / "top.yaml").write_text("extends: base.yaml\nseed: 3\n07_diversity: {ratios: [0.5]}\n")
    base, top = (load("list_length=4", path=tmp_path / name) for name in ("base.yaml", "top.yaml"))
    assert (top["seed"], top["dataset"]["name"], top["10_export"]["list_length"]) == (3, "smoke", 4)
    assert top["07_diversity"] == base["07_diversity"] | {"ratios": [0.5]}  # a list replaces, a section is merged
    assert top["06_alpha_curve"] == base["06_alpha_curve"]
    assert (base["budget_seconds"], top["budget_seconds"]) == ({"01_ingest": 5}, {})  # of the one data set only


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("extends: none.yaml", r"none\.yaml \(.*p\.yaml extends it\)"),
        ("extends: p.yaml", "leads back to itself"),
        ("extends: q.yaml", "leads back to itself"),
        ("extends: .", "no parameter file"),
    ],
)
def test_a_base_that_cannot_be_used_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    (tmp_path / "q.yaml").write_text("extends: p.yaml")
    with pytest.raises(InputError, match=named):
        load(path=tmp_path / "p.yaml")


@pytest.mark.parametrize(
    "url", ["postgresql://me:s3cret@host/films", "postgres://:s3/cret@host", "postgresql://host/films?password=s3cret"]
)
def test_a_password_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InputError, match="env:RECSYS_STORE_URL") as error:
        load(f"dataset.store={url}")
    with pytest.raises(InputError) as elsewhere:
        load(f"imdb_votes={url}")
    assert "s3" not in str(error.value) + str(elsewhere.value)


@pytest.mark.parametrize(
    "url", ["env:RECSYS_STORE_URL", "sqlite:///data/ratings.db", "postgresql://me@host:5432/films"]
)
def test_a_store_without_a_password_is_accepted(url: str) -> None:
    assert load(f"dataset.store={url}")["dataset"]["store"] == url


def test_appendices_are_in_the_chain_where_they_have_something_to_show() -> None:
    usual = pipeline.chain(load())
    full = pipeline.chain({"accuracy": "full", "dataset": {"links": "x.zip"}})
    assert full.keys() - usual.keys() == {"appendix_accuracy_ladder", "appendix_movie_ids"}
    assert all(need in chain for chain in (usual, full) for needs in chain.values() for need in needs)
