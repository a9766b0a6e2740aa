"""The ratings store on SQLite and on a PostgreSQL server that the tests start themselves."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import sqlalchemy as sql
from stores import write

from recsys_utils.base import InputError, Scale
from recsys_utils.personal import ratings_store
from recsys_utils.personal.ratings_store import merge_store, read, state, store_url

PASSWORD = "s3cr3t/p@ss"  # characters that a URL quotes
QUOTED = "s3cr3t%2Fp%40ss"
SCALE = Scale(1, 5)
ITEMS = pd.DataFrame(
    {"item_id": ["1", "2", "3", "4"], "tmdb_id": pd.array(["862", "949", "949", None], dtype="string")}
)
SEED = pd.DataFrame(
    {"user_id": ["ml_1", "ml_1", "ml_2"], "item_id": ["1", "2", "1"], "rating": [5, 3, 4], "timestamp": [10, 20, 30]}
).astype({"rating": "float32", "timestamp": "int64"})


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a server on the loopback, run by an ordinary user (it refuses root), gone with the tests."""
    found = [*sorted(Path("/usr/lib/postgresql").glob("*/bin")), *map(Path, os.environ["PATH"].split(":"))]
    binaries = next((folder for folder in found if (folder / "initdb").is_file()), None)
    if binaries is None:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    user: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.geteuid() == 0 else {}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="store"))
    data, password, log = folder / "data", folder / "password", folder / "log"
    password.write_text(PASSWORD, encoding="utf-8")
    if user:
        for path in (folder, password):
            shutil.chown(path, **user)

    def call(program: str, *options: str) -> None:
        done = subprocess.run(
            [binaries / program, "-D", data, *options], cwd=folder, capture_output=True, text=True, timeout=60, **user
        )
        assert done.returncode == 0, done.stderr + (log.read_text() if log.is_file() else "")

    try:
        call("initdb", "--username=tester", "--auth=scram-sha-256", f"--pwfile={password}", "--no-sync", "-E", "UTF8")
        settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        call("pg_ctl", "-w", "-l", str(log), "-o", settings, "start")
        yield f"postgresql://tester:{QUOTED}@127.0.0.1:{port}/postgres"
    finally:
        if (data / "postmaster.pid").is_file():
            call("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of an empty store."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ratings.db"
        return
    address = request.getfixturevalue("postgres")
    yield address
    execute(address, "DROP TABLE IF EXISTS ratings")


def execute(address: str, *statements: str) -> None:
    engine = sql.create_engine(store_url(address))
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sql.text(statement))
    engine.dispose()


def ratings(*rows: tuple[str, int, float, str | None]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["user_id", "movie_id", "rating", "created_at"])
    return table.assign(
        created_at=[pd.Timestamp(t, tz="UTC").to_pydatetime() if t else None for t in table["created_at"]]
    )


def merged(address: str, **options: Any) -> ratings_store.Merged:
    return merge_store(SEED, ITEMS, **{"store": address, "required": True, "scale": SCALE} | options)


def test_what_is_written_is_read_the_latest_rating_of_a_film(store: str) -> None:
    url = store_url(store)
    write(url, ratings(("ann", 949, 2.5, "2020-01-02"), ("ann", 949, 4, "2020-01-01"), ("ann", 862, 5, None)))
    write(url, ratings(("Bob ü", 862, 1, "1970-01-01")))
    write(url, ratings())
    assert read(url).to_numpy().tolist() == [
        ["Bob ü", 862, 1.0, 0], ["ann", 862, 5.0, 0], ["ann", 949, 2.5, 1577923200],
    ]  # fmt: skip  # 2020-01-02 is 18,263 days of 86,400 s after 1970


def test_users_of_the_store_join_those_of_the_data_set(store: str) -> None:
    """TMDB's 949 stands for two films here: the first. 603 is no film of the catalogue."""
    write(store_url(store), ratings(("ml_1", 949, 2, None), ("ann", 862, 4.5, None), ("ann", 603, 5, None)))
    both, note, meta = merged(store)
    assert both.iloc[:3].equals(SEED)
    assert both.iloc[3:].to_numpy().tolist() == [["real_ann", "1", 4.5, 0], ["real_ml_1", "2", 2.0, 0]]
    assert both.dtypes.equals(SEED.dtypes)
    assert (meta["users"], meta["ratings"], meta["ratings_of_unknown_films"]) == (2, 2, 1)
    assert "adds 2 ratings of 2 users. Left out: 1 rating of films" in note


def test_a_real_rating_wins_a_conflict(store: str) -> None:
    write(store_url(store), ratings(("ann", 862, 2, None)))
    seed = SEED.assign(user_id=["real_ann", "real_ann", "ml_2"])
    both = merge_store(seed, ITEMS, store=store, required=True, scale=SCALE).ratings
    expected = {("real_ann", "1"): 2, ("real_ann", "2"): 3, ("ml_2", "1"): 4}
    assert both.set_index(["user_id", "item_id"])["rating"].to_dict() == expected


def test_an_empty_store_adds_nothing(store: str) -> None:
    write(store_url(store), ratings())
    assert read(store_url(store)).empty
    both = merge_store(SEED, ITEMS, store=store, required=True, scale=SCALE).ratings
    assert both.equals(SEED)


def test_tables_made_by_others_are_read(store: str) -> None:
    """Other types for ids and dates, more columns, no key."""
    execute(
        store,
        "CREATE TABLE ratings (id INTEGER, movie_id TEXT, user_id INTEGER, rating NUMERIC(3, 1), created_at TEXT)",
        "INSERT INTO ratings VALUES (1, '862', 7, 4.5, '2020-01-02T00:00:00+00:00'), (2, '949', 7, 3, 'yesterday')",
    )
    assert read(store_url(store)).to_numpy().tolist() == [["7", 862, 4.5, 1577923200], ["7", 949, 3.0, 0]]


def test_the_digest_depends_on_the_ratings_alone(store: str) -> None:
    rows = [("ann", 862, 4.0, None), ("bob", 949, 2.0, None)]
    write(store_url(store), ratings(*rows))
    first = merged(store)
    execute(store, "DELETE FROM ratings")
    write(store_url(store), ratings(*reversed(rows)))
    assert merged(store).meta == first.meta
    assert merged(store).ratings.equals(first.ratings)
    assert state(store) == first.meta["sha256"], "by which the pipeline knows that ingest is due"
    execute(store, "UPDATE ratings SET rating = 3")
    assert merged(store).meta["sha256"] == state(store) != first.meta["sha256"]
    execute(store, "DROP TABLE ratings")
    assert state(store) == "unreadable"


def test_scales_are_not_mixed(store: str) -> None:
    """4 stars of .5-5 are 1 + 3.5 * 4 / 4.5 on 1-5."""
    write(store_url(store), ratings(("ann", 862, 0.5, None), ("ann", 949, 4, None)))
    with pytest.raises(InputError, match=r"outside the scale 1-5: 1, the first 0\.5.*dataset\.store_scale"):
        merged(store, required=False)
    found = merged(store, store_scale="0.5-5").ratings["rating"].iloc[3:].tolist()
    assert found == pytest.approx([1, 1 + 3.5 * 4 / 4.5])


@pytest.mark.parametrize("row", ["'ann', 'tt01', '3'", "'ann', '8.5', '3'", "'ann', '862', 'good'", "NULL, '862', '3'"])
def test_rows_that_are_no_ratings_are_refused(store: str, row: str) -> None:
    execute(
        store, "CREATE TABLE ratings (user_id TEXT, movie_id TEXT, rating TEXT, created_at TEXT)",
        f"INSERT INTO ratings VALUES ({row}, NULL)",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"1 bad row;"):
        merged(store, required=False)


def test_no_store_changes_nothing() -> None:
    found = merged("")
    assert found.ratings is SEED
    assert (found.note, found.meta) == ("", {})


def test_a_store_without_the_table(store: str) -> None:
    execute(store, "SELECT 1")
    unreachable(store, "ratings")


def unreachable(address: str, says: str, **options: Any) -> None:
    """An error when required, else a warning and the data set alone; in both cases no secret."""
    with pytest.raises(InputError, match=says) as error:
        merged(address, **options)
    assert "dataset.store_required" in str(error.value)
    both, note, meta = merged(address, required=False, **options)
    assert both is SEED
    assert note.startswith("Warning: ")
    assert "used alone" in note
    for text in (str(error.value), note, str(meta)):
        assert "\n" not in text
        assert PASSWORD not in text
        assert QUOTED not in text


def test_wrong_password(postgres: str) -> None:
    unreachable(postgres.replace(QUOTED, QUOTED + "x"), "password authentication failed")
    unreachable(postgres.replace("127.0.0.1:", "127.0.0.1:1").replace("/postgres", "/" + QUOTED), "can't be read")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (f"postgresql://me:{QUOTED}@127.0.0.1:1/films", r"postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/films can't be"),
        (f"postgres://me:{QUOTED}@host.invalid/films", "can't be read"),
        (f"postgres://127.0.0.1:1/films?user=me&password={QUOTED}", "127.0.0.1:1/films can't be read"),
        ("sqlite:////nowhere/at/all.db", "there is no such file"),
        (f"nosuch://me:{QUOTED}@host/films", "can't be read"),
        ("env:RECSYS_NO_SUCH_VARIABLE", "RECSYS_NO_SUCH_VARIABLE, which is not set"),
    ],
)
def test_stores_that_are_not_there(address: str, says: str) -> None:
    unreachable(address, says)


@pytest.mark.parametrize(
    "address", [f"me:{QUOTED}@host", f"postgresql//{QUOTED}", f"postgresql://me:{QUOTED}@host:port/x"]
)
def test_what_is_no_url_is_not_repeated(address: str) -> None:
    with pytest.raises(InputError, match="no database URL") as error:
        merged(address, required=False)
    assert "s3cr3t" not in str(error.value)


def test_a_url_from_the_environment_leaves_no_password_behind(
    postgres: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RECSYS_STORE_URL", postgres)
    caplog.set_level("DEBUG")
    write(store_url("env:RECSYS_STORE_URL"), ratings(("ann", 862, 4, None)))
    both, note, meta = merged("env:RECSYS_STORE_URL")
    assert len(both) == len(SEED) + 1
    execute(postgres, "DROP TABLE ratings")
    out, err = capfd.readouterr()
    assert not [text for text in (note, str(meta), caplog.text, out, err) if PASSWORD in text or QUOTED in text]


def test_a_catalogue_without_tmdb_ids_is_told(store: str) -> None:
    write(store_url(store), ratings(("ann", 862, 4, None)))
    blind = ITEMS.assign(tmdb_id=pd.array([None] * len(ITEMS), dtype="string"))
    with pytest.raises(InputError, match=r"no film of the catalogue has one; dataset\.links"):
        merge_store(SEED, blind, store=store, required=True, scale=SCALE)
    found = merge_store(SEED, blind, store=store, required=False, scale=SCALE)
    assert found.ratings.equals(SEED)
    assert "1 rating of films that the catalogue does not know by TMDB id" in found.note


def test_a_relative_path_counts_from_the_project(tmp_path: Path) -> None:
    write(store_url("sqlite:///mine.db", tmp_path), ratings(("ann", 862, 4, None)))
    assert (tmp_path / "mine.db").is_file()
    assert len(merged("sqlite:///mine.db", root=tmp_path).ratings) == len(SEED) + 1
