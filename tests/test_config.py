"""Parameter files: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from recsys_study import parameters as config
from recsys_utils.base import InputError

ROOT = Path(__file__).resolve().parents[1]
SMOKE = ROOT / "params" / "smoke.yaml"


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.name)
def test_every_parameter_file_is_valid_and_explained(path: Path) -> None:
    config.load(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    keys = [(before, line) for before, line in pairwise(lines) if re.match(r"  \w+:", line)]
    assert keys
    assert not [line for before, line in keys if "#" not in line and not before.lstrip().startswith("#")]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("nonsense=1", "nonsense is not a parameter"),
        ("07_diversity.nonsense=1", "07_diversity.nonsense is not a parameter"),
        ("seed=many", "seed = 'many'"),
        ("seed=-1", "seed = -1"),
        ("01_ingest.user_folds=1", "01_ingest.user_folds = 1"),
        ("02_content_tfidf.fields=genres", "02_content_tfidf.fields = 'genres'"),
        (
            "03_cf_grid_search.svd_grid={n_factors: [5], n_epochs: [5], lr: [.01], reg: [.1]}",
            "needs two settings or more, and this one has 1",
        ),
        ("seed", "--set takes key=value"),
        ("seed.deeper=1", "seed is not a section"),
        ("dataset.archive=/no/such.zip", "there is no file /no/such.zip"),
        ("stratified_runs=3", "03_cf_grid_search.stratified_runs or 06_alpha_curve.stratified_runs"),
    ],
)
def test_a_bad_setting_is_named(setting: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        config.load(SMOKE, [setting], root=ROOT)
    assert message in str(caught.value)


def test_settings_are_yaml_values_under_dotted_keys() -> None:
    parameters = config.load(SMOKE, ["07_diversity.ratios=[0, 0.2]", "seed=7"])
    assert parameters.diversity.ratios == [0.0, 0.2]
    assert parameters.seed == 7


def test_an_archive_is_found_from_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.zip").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert config.load(SMOKE, ["dataset.archive=mine.zip"], root=ROOT).dataset.archive == str(tmp_path / "mine.zip")
    assert config.load(SMOKE, ["dataset.archive=mine.zip"], root=tmp_path).dataset.archive == "mine.zip"


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n- b", "must be a mapping"), ("a: [", "not valid YAML"), ("seed: 1", "dataset is missing")],
)
def test_a_file_that_is_no_parameter_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        config.load(tmp_path / "p.yaml")


def test_a_missing_file_is_answered_with_the_files_there_are(tmp_path: Path) -> None:
    (tmp_path / "there.yaml").write_text("")
    with pytest.raises(InputError, match=r"holds: there\.yaml"):
        config.load(tmp_path / "absent.yaml")


def test_sections_hold_what_the_file_says() -> None:
    raw = yaml.safe_load(SMOKE.read_text(encoding="utf-8"))
    parameters = config.load(SMOKE)
    assert parameters.for_stage("02_content_tfidf") == raw["02_content_tfidf"]
    assert parameters.for_stage("01_ingest") == raw["01_ingest"] | {
        f"dataset_{name}": value for name, value in parameters.dataset.model_dump().items()
    }
    with pytest.raises(KeyError):
        parameters.for_stage("99_nothing")


def test_a_file_that_extends_another_holds_only_what_differs(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(SMOKE.read_text(encoding="utf-8"))
    (tmp_path / "top.yaml").write_text(
        "extends: base.yaml\nseed: 3\ndataset: {archive: x.zip}\n07_diversity: {ratios: [0.5]}\n"
    )
    base, top = config.load(tmp_path / "base.yaml"), config.load(tmp_path / "top.yaml", ["10_export.list_length=4"])
    assert (top.seed, top.dataset.name, top.dataset.archive) == (3, "smoke", "x.zip")
    assert top.diversity.ratios == [0.5]  # a list replaces, a section is merged
    assert top.diversity.max_loss == base.diversity.max_loss
    assert top.export.list_length == 4
    assert top.alpha == base.alpha


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: none.yaml", r"no parameter file .*none\.yaml \(.*p\.yaml extends it\)"),
        ("extends: p.yaml", "leads back to itself"),
        ("extends: q.yaml", "leads back to itself"),
        ("extends: [a]", r"takes the name of a parameter file; found \['a'\]"),
        ("extends: .", "no parameter file"),
    ],
)
def test_a_base_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    (tmp_path / "q.yaml").write_text("extends: p.yaml")
    with pytest.raises(InputError, match=message):
        config.load(tmp_path / "p.yaml")


def test_sources_of_film_facts_are_names_or_files(tmp_path: Path) -> None:
    (tmp_path / "keywords.csv").write_text("id,keywords\n")
    found = config.load(SMOKE, [f"dataset.catalogue=[tags, {tmp_path / 'keywords.csv'}]"], root=tmp_path)
    assert found.dataset.catalogue == ["tags", str(tmp_path / "keywords.csv")]
    with pytest.raises(InputError, match=r"dataset\.catalogue\.0 = .tgas.: there is no file tgas"):
        config.load(SMOKE, ["dataset.catalogue=[tgas]"], root=ROOT)


@pytest.mark.parametrize(
    "url", ["postgresql://me:s3cret@host/films", "postgres://:s3/cret@host", "postgresql://host/films?password=s3cret"]
)
def test_a_password_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InputError, match="env:RECSYS_STORE_URL") as error:
        config.load(SMOKE, [f"dataset.store={url}"])
    assert "cret@" not in str(error.value)
    assert "s3" not in str(error.value)


@pytest.mark.parametrize(
    "url", ["env:RECSYS_STORE_URL", "sqlite:///data/ratings.db", "postgresql://me@host:5432/films"]
)
def test_a_store_without_a_password_may_stand_in_parameters(url: str) -> None:
    assert config.load(SMOKE, [f"dataset.store={url}"]).dataset.store == url


def test_a_key_that_one_section_has_needs_no_section() -> None:
    assert config.load(SMOKE, ["accuracy=full"]).grid.accuracy == "full"
    assert config.load(SMOKE, ["seed=7"]).seed == 7  # a key of the whole file stays one


def test_a_budget_is_of_a_stage() -> None:
    assert config.load(SMOKE, ["budget_seconds.01_ingest=5"]).budget_seconds["01_ingest"] == 5
    with pytest.raises(InputError, match=r"02_ingest is no stage; there are 01_ingest, 02_content_tfidf"):
        config.load(SMOKE, ["budget_seconds.02_ingest=5"])
    with pytest.raises(InputError, match="greater than 0"):
        config.load(SMOKE, ["budget_seconds.01_ingest=0"])


def test_a_budget_holds_for_the_file_it_stands_in_only(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(SMOKE.read_text() + "\nbudget_seconds: {01_ingest: 5}\n")
    (tmp_path / "other.yaml").write_text("extends: base.yaml\nseed: 3\n")
    assert config.load(tmp_path / "base.yaml").budget_seconds == {"01_ingest": 5}
    assert config.load(tmp_path / "other.yaml").budget_seconds == {}
