"""Parameter files: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from recsys_utils import config
from recsys_utils.interfaces import InputError

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
        ("seed", "--set takes key=value"),
        ("seed.deeper=1", "seed is not a section"),
        ("dataset.archive=/no/such.zip", "there is no file /no/such.zip"),
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
    assert parameters.for_stage("01_ingest") == raw["01_ingest"] | {"dataset_name": "smoke", "dataset_archive": ""}
    with pytest.raises(KeyError):
        parameters.for_stage("99_nothing")
