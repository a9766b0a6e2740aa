"""The command line as a person meets it: exit statuses, one-paragraph errors, nothing changed on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def recsys(*arguments: str, stdin: str = "", cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "recsys_study.cli", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "RECSYS_ROOT"}
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, env=environment)


def runs() -> set[Path]:
    """Folders of runs; those of smoke runs belong to other tests, which may be at work."""
    found = {path for folder in ("data/processed", "reports") for path in (ROOT / folder).glob("*")}
    return {path for path in found if "smoke" not in path.name}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "params/absent.yaml"], "There is no parameter file"),
        (["run", "params/smoke.yaml", "--name", "bad", "--set", "seed=x"], "seed = 'x'"),
        (["run", "params/smoke.yaml", "--name", "bad", "--set", "typo=1"], "typo is not a parameter"),
        (
            ["run", "params/smoke.yaml", "--name", "bad", "--set", "dataset.archive=none.zip"],
            "there is no file none.zip",
        ),
        (["run", "params/smoke.yaml", "--name", "bad", "--set", "dataset.name=ml-9"], "ml-9"),
        (["run", "params/smoke.yaml", "--name", "bad", "--only", "99_nothing"], "There is no stage"),
        (["run", "params/smoke.yaml", "--name", "a/b"], "A run's name"),
        (["run", "params/smoke.yaml", "--name", "bad", "--jobs", "0"], "--jobs must be at least 1"),
        (["fetch", "ml-9"], "ml-9"),
        (["fetch", "ml-100k", "--archive", "none.zip"], "none.zip"),
        (["recommend", "--ratings", "x.csv", "--bundle", "no/such/bundle"], "no/such/bundle"),
        (["publish", "absent"], "holds no finished report"),
    ],
)
def test_bad_input_is_one_paragraph_and_status_2(arguments: list[str], message: str) -> None:
    before = runs()
    done = recsys(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    said = done.stderr.strip()
    assert message in said.replace("\n", " ")
    assert "Traceback" not in said
    assert "\n\n" not in said
    assert runs() == before


def test_outside_the_project_the_way_in_is_named(tmp_path: Path) -> None:
    done = recsys("run", str(ROOT / "params/smoke.yaml"), cwd=tmp_path)
    assert done.returncode == 2
    assert "is not inside the project" in done.stderr


def test_help_lists_the_commands() -> None:
    shown = recsys("--help").stdout
    for command in ("run", "fetch", "recommend", "publish", "readme", "reference", "compare", "elicit", "bench"):
        assert command in shown


class TestOnTheSmokeRun:
    def test_a_repeat_does_nothing(self, smoke_run: Path) -> None:
        done = recsys("run", "params/smoke.yaml")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Nothing changed" in done.stdout

    def test_recommendations_for_a_file(self, smoke_run: Path, tmp_path: Path) -> None:
        items = [line.split(",")[2] for line in (smoke_run / "recommendations.csv").read_text().splitlines()[1:9]]
        rated = list(dict.fromkeys(items))
        text = "item_id,rating\n" + "".join(f"{item},{5 - place % 2}\n" for place, item in enumerate(rated))
        bundle = ["--bundle", str(smoke_run / "bundle")]
        done = recsys("recommend", "--ratings", "-", *bundle, "-n", "5", "--format", "json", stdin=text)
        assert done.returncode == 0, done.stderr
        films = json.loads(done.stdout)
        assert [film["rank"] for film in films] == [1, 2, 3, 4, 5]
        assert not {film["item_id"] for film in films} & set(rated)
        assert all(film["reason"] for film in films)
        (tmp_path / "mine.csv").write_text(text)
        shown = recsys("recommend", "--ratings", str(tmp_path / "mine.csv"), *bundle, "-n", "5", "--explain")
        assert shown.returncode == 0, shown.stderr
        assert films[0]["title"] in shown.stdout
        assert "contributions" in shown.stdout

    def test_neighbours_answer_on_the_scale_of_the_file(self, smoke_run: Path) -> None:
        """Every second of the first 60 films, rated 2 to 10 on a scale of 1-10."""
        text = "item_id,rating\n" + "".join(f"{n},{2 + n * n % 9}\n" for n in range(1, 60, 2))
        arguments = ["recommend", "--model", "neighbours", "--bundle", str(smoke_run / "bundle"), "--scale", "1-10"]
        done = recsys(*arguments, "--ratings", "-", "--format", "json", stdin=text)
        assert done.returncode == 0, done.stderr
        films = json.loads(done.stdout)
        assert [film["predicted"] for film in films] == sorted((f["predicted"] for f in films), reverse=True)
        assert max(film["predicted"] for film in films) > 5
        assert not {film["item_id"] for film in films} & {str(n) for n in range(1, 60, 2)}
        shown = recsys(*arguments, "--ratings", "-", stdin=text)
        assert shown.stdout.split()[:7] == ["Rank", "Title", "Predicted", "IMDb", "Year", "Genres", "Director"]
        assert films[0]["title"] in shown.stdout
        explained = recsys(*arguments, "--explain", "--format", "json", "--ratings", "-", stdin=text)
        assert all("your mean" in film["contributions"] for film in json.loads(explained.stdout))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("item_id\n1\n", "rating"),
            ("item_id,rating\n1,17\n", "17"),
            ("item_id,rating\nno-such-film,4\n", "no-such-film"),
            ("", "empty"),
        ],
    )
    def test_a_bad_ratings_file(self, smoke_run: Path, text: str, message: str) -> None:
        done = recsys("recommend", "--ratings", "-", "--bundle", str(smoke_run / "bundle"), stdin=text)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stdout == ""
        assert "Traceback" not in done.stderr

    def test_no_secret_of_the_environment_is_recorded(self, smoke_run: Path) -> None:
        values = {v for k, v in os.environ.items() if any(w in k.upper() for w in ("TOKEN", "SECRET", "PASSWORD"))}
        record = (smoke_run / "run.json").read_text(encoding="utf-8")
        assert not [value for value in values if len(value) > 5 and value in record]
        assert {"parameters", "git", "data", "versions", "seed", "stages"} <= set(json.loads(record))
