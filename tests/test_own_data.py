"""Tables of one's own: which columns, which scale, what is left out and said; and whole runs on odd ones."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from own_tables import few, half_stars, points, tracks

from recsys_study import ingest
from recsys_study import parameters as config
from recsys_study.ingest import describe
from recsys_utils.base import InputError, Scale, counted
from recsys_utils.data import catalogue
from recsys_utils.data.fetch import fetch
from recsys_utils.data.interactions import Interactions
from recsys_utils.evaluation.protocols import make_splits, warm_split
from recsys_utils.models import grid_kernels
from recsys_utils.models.rankers import EASE, ItemKNN
from recsys_utils.models.surprise_models import KNN, SVD, predict_by_surprise
from recsys_utils.personal import own_table as own_data

ROOT = Path(__file__).resolve().parents[1]
BASE = pd.DataFrame(
    [(f"u{u}", f"i{(u * 7 + n) % 30}", 1 + (u + n) % 5) for u in range(60) for n in range(20)],
    columns=["user_id", "item_id", "rating"],
)  # 60 users x 20 of 30 items, 1-5


def written(folder: Path, table: pd.DataFrame, name: str = "mine.csv", **options: object) -> Path:
    table.to_csv(folder / name, index=False, **options)
    return folder / name


def note(found: own_data.OwnData, word: str) -> str:
    """The one sentence that holds a word."""
    (text,) = [sentence for sentence in found.notes if word in sentence]
    return text


# ---- columns


@pytest.mark.parametrize(
    "header",
    [
        ("userId", "movieId", "rating"), ("User-ID", "ISBN", "Book-Rating"), ("uid", "product_id", "Score"),
        ("customer", "asin", "stars"), ("USER", "Song", "value"), ("reviewerID", "track", "overall"),
    ],
)  # fmt: skip
def test_columns_are_found_by_their_usual_names(tmp_path: Path, header: tuple[str, ...]) -> None:
    found = own_data.read(written(tmp_path, BASE.set_axis(header, axis=1)))
    assert len(found.ratings) == len(BASE)
    assert found.ratings["user_id"].iloc[0] == "own_u0"


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_separators_and_encodings_are_sniffed(tmp_path: Path, separator: str, encoding: str) -> None:
    table = BASE.assign(item_id=BASE["item_id"] + " é")
    found = own_data.read(written(tmp_path, table, sep=separator, encoding=encoding))
    assert set(found.ratings["item_id"]) == set(table["item_id"])


def test_parquet_and_gzip_say_the_same_as_csv(tmp_path: Path) -> None:
    plain = own_data.read(written(tmp_path, BASE))
    numbered = BASE.assign(item_id=BASE["item_id"].str[1:].astype(float), rating=BASE["rating"].astype("int8"))
    numbered.to_parquet(tmp_path / "mine.parquet")
    (tmp_path / "mine.gz").write_bytes(gzip.compress((tmp_path / "mine.csv").read_bytes()))
    pd.testing.assert_frame_equal(own_data.read(tmp_path / "mine.gz").ratings, plain.ratings)
    stripped = plain.ratings.assign(item_id=plain.ratings["item_id"].str[1:])  # 7.0 is the id 7
    pd.testing.assert_frame_equal(own_data.read(tmp_path / "mine.parquet").ratings, stripped)


def test_two_columns_that_may_be_the_item_are_not_guessed(tmp_path: Path) -> None:
    path = written(tmp_path, BASE.set_axis(["user", "artist", "rating"], axis=1).assign(song=BASE["item_id"]))
    with pytest.raises(
        InputError, match=r"several columns that may be the item_id; it has: user, artist, rating, song"
    ):
        own_data.read(path)
    assert len(own_data.read(path, columns={"item_id": "song"}).ratings) == len(BASE)
    exact = BASE.assign(track=1, timestamp=5, date="x")  # the study's own name, or an id, settles it
    assert len(own_data.read(written(tmp_path, exact)).ratings) == len(BASE)


def test_a_missing_column_is_answered_with_those_there_are(tmp_path: Path) -> None:
    path = written(tmp_path, BASE.set_axis(["who", "what", "how"], axis=1))
    with pytest.raises(InputError, match=r"no column that may be the user_id; it has: who, what, how"):
        own_data.read(path)
    found = own_data.read(path, columns={"user_id": "who", "item_id": "what", "rating": "how"})
    assert len(found.ratings) == len(BASE)
    with pytest.raises(InputError, match=r"dataset\.columns: person is none of user_id"):
        own_data.read(path, columns={"person": "who"})


def test_a_time_can_be_declined(tmp_path: Path) -> None:
    path = written(tmp_path, BASE.assign(timestamp=np.arange(len(BASE)) + 10**9))
    assert own_data.read(path).has_time
    assert not own_data.read(path, columns={"timestamp": ""}).has_time


# ---- rows


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path: Path) -> None:
    odd = [
        ("u1", "", 3),
        ("", "i1", 3),
        ("u1", "i1", "good"),
        ("u2", "i1", "nan"),
        ("u3", "i1", "inf"),
        ("u0", "i0", 5),
    ]
    table = pd.concat([BASE.astype(str), pd.DataFrame(odd, columns=BASE.columns).astype(str)])
    found = own_data.read(written(tmp_path, table))
    assert len(found.ratings) == len(BASE)  # u0, i0 is there twice: the last row counts
    assert found.ratings.query("user_id == 'own_u0' and item_id == 'i0'")["rating"].item() == 5
    assert note(found, "Left out") == (
        "Left out: 2 rows without user or item and 3 without a number as rating, such as 'good'."
    )
    assert note(found, "earlier rating").startswith("Of the same user and item: 1 earlier rating;")


def test_ids_are_kept_as_they_are(tmp_path: Path) -> None:
    names = {"i1": "007", "i2": "a, b", "i3": 'said "x"', "i4": "日本 🎬", "i5": "two words", "i6": "7"}
    found = own_data.read(written(tmp_path, BASE.assign(item_id=BASE["item_id"].replace(names))))
    assert set(names.values()) <= set(found.ratings["item_id"])
    assert found.items.set_index("item_id")["title"]["007"] == "007"


def test_constant_users_and_single_items_are_counted(tmp_path: Path) -> None:
    table = BASE.assign(rating=np.where(BASE["user_id"] == "u5", 3, BASE["rating"]))
    table.iloc[0, 1] = "only once"
    found = own_data.read(written(tmp_path, table))
    assert note(found, "alike").startswith("1 user with ratings all alike and 1 item with one rating")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (BASE.head(300), "300 usable ratings"),
        (BASE[BASE["user_id"] < "u4"], "the study needs 1,000 and 40"),
        (BASE.assign(rating=5), r"all ratings are \[5.0\]"),
        (
            BASE.assign(rating="yes"),
            "most of its 1,200 rows can't be used: 1,200 without a number as rating, such as 'yes'",
        ),
        (BASE.head(0), "it has only a header"),
    ],
)
def test_tables_that_allow_no_study_are_refused(tmp_path: Path, table: pd.DataFrame, says: str) -> None:
    with pytest.raises(InputError, match=says):
        own_data.read(written(tmp_path, table))


# ---- scale


def test_the_scale_is_read_off_the_data_or_named(tmp_path: Path) -> None:
    path = written(tmp_path, BASE.assign(rating=BASE["rating"] * 0.5 + 0.5))
    found = own_data.read(path)
    assert (found.scale.lo, found.scale.hi, found.scale.liked) == (1, 3, 2.5)
    assert "1 to 3, in steps of 0.5 (read from the data" in note(found, "rating scale")
    wider = own_data.read(path, scale="0.5-4", liked=3)
    assert (wider.scale.lo, wider.scale.hi, wider.scale.liked) == (0.5, 4, 3)
    with pytest.raises(InputError, match=r"of the ratings lie outside dataset.scale 2-3"):
        own_data.read(path, scale="2-3")
    with pytest.raises(InputError, match="no rating is a like"):
        own_data.read(path, scale="1-100")


@pytest.mark.parametrize(
    ("zeros", "ones", "meaning"),
    [
        (80, 100, "rating"),  # a 0 among 0-5: as frequent as its neighbour
        (40, 4, "rating"),  # ten times as frequent is the limit
        (41, 4, "none"),
        (600, 20, "none"),  # "seen, not rated", as Book-Crossing and MyAnimeList write it
        (1, 100, "none"),  # a slip among 1-5
    ],
)
def test_a_zero_out_of_proportion_is_no_rating(tmp_path: Path, zeros: int, ones: int, meaning: str) -> None:
    rating = np.resize([2, 3, 4, 5], len(BASE) * 2)
    rating[:zeros], rating[zeros : zeros + ones] = 0, 1
    twice = pd.concat([BASE, BASE.assign(user_id="v" + BASE["user_id"])]).assign(rating=rating)
    path = written(tmp_path, twice.sample(frac=1, random_state=0))
    found = own_data.read(path)
    assert (found.ratings["rating"] == 0).sum() == (zeros if meaning == "rating" else 0)
    assert f"Of value 0: {counted(zeros, 'rating')}, counting as" in note(found, "Of value 0")
    assert len(own_data.read(path, zeros="rating").ratings) == len(twice)
    assert len(own_data.read(path, zeros="none").ratings) == len(twice) - zeros
    assert own_data.read(path, scale="0-5").scale.lo == 0
    if meaning == "none":
        assert own_data.read(path, scale="1-5").scale.lo == 1


def test_a_rating_of_zero_is_a_rating_in_every_model() -> None:
    """Moving a scale from 1-11 to 0-10 may change no list: nothing may take a stored 0 for an empty place."""
    rng = np.random.default_rng(0)
    pairs = pd.DataFrame(
        [(f"u{u}", f"i{i}") for u in range(30) for i in rng.permutation(40)[:20]], columns=["user_id", "item_id"]
    )
    rating = rng.integers(0, 11, len(pairs))
    cases = []
    for shift in (0, 1):
        data = Interactions.from_frame(pairs.assign(rating=rating + shift), scale=Scale(shift, 10 + shift))
        case = warm_split(data, make_splits(data, seed=1)[0]["last20"])
        assert case.profiles.nnz + case.relevant_any.nnz == len(data)
        cases.append(case)
    models = [SVD(n_factors=4), KNN(similarity="msd"), KNN(kind="KNNBaseline"), KNN(similarity="msd", user_based=False),
              ItemKNN(k=10, shrink=1.0, binarise="any"), EASE(reg=10.0, binarise="any")]  # fmt: skip
    for model in models:
        zero, one = (model.fit(case.train).scores(case.profiles) for case in cases)
        moved = 1 if isinstance(model, SVD | KNN) else 0
        np.testing.assert_allclose(zero + moved, one, atol=2e-5, err_msg=repr(model))


def test_svd_on_a_wide_scale_is_svd_on_stars() -> None:
    """1-100 counts as (100 - 1) / 24.75 = 4 points; without that, gradient descent overflows within an epoch."""
    rng = np.random.default_rng(0)
    pairs = [(f"u{u}", f"i{i}") for u in range(60) for i in rng.permutation(40)[:20]]
    frame = pd.DataFrame(pairs, columns=["user_id", "item_id"]).assign(rating=rng.integers(1, 101, len(pairs)))
    wide = Interactions.from_frame(frame, scale=Scale(1, 100))
    model, narrow = (
        SVD(n_factors=8, lr=0.02),
        replace(wide, rating=wide.rating / 24.75, scale=Scale(1 / 24.75, 4 + 1 / 24.75)),
    )
    served, stars = (replace(model).fit(data).scores(data.user_item) for data in (wide, narrow))
    np.testing.assert_allclose(served, 24.75 * stars, rtol=1e-5)
    theirs = predict_by_surprise(wide, wide, model)
    np.testing.assert_allclose(grid_kernels.predictions(wide, wide, [model])[0], theirs, atol=1e-9)
    assert np.abs(theirs - wide.rating).mean() < np.abs(wide.rating - wide.rating.mean()).mean()


# ---- time


@pytest.mark.parametrize(
    "times",
    [
        "seconds", "milliseconds", "microseconds", "2001-09-09T01:46:40", "2001-09-09 01:46:40+00:00",
    ],
)  # fmt: skip
def test_times_in_their_usual_spellings(tmp_path: Path, times: str) -> None:
    base = np.arange(len(BASE)) * 60 + 10**9
    units = {"seconds": 1, "milliseconds": 1000, "microseconds": 10**6}
    moments = pd.to_datetime(base, unit="s", utc=True)
    spelled = (
        base * units[times] if times in units else moments.map(lambda t: t.isoformat(" " if " " in times else "T"))
    )
    found = own_data.read(written(tmp_path, BASE.assign(ts=spelled)))
    assert found.has_time
    assert found.ratings["timestamp"].tolist() == base.tolist()


def test_a_few_unreadable_times_cost_their_rows_many_cost_the_time(tmp_path: Path) -> None:
    times = pd.Series(np.arange(len(BASE)) + 10**9, dtype=object)
    times[:5] = "yesterday"
    some = own_data.read(written(tmp_path, BASE.assign(date=times.to_numpy())))
    assert (some.has_time, len(some.ratings)) == (True, len(BASE) - 5)
    times[:500] = "01/02/2003"
    none = own_data.read(written(tmp_path, BASE.assign(date=times.to_numpy())))
    assert (none.has_time, len(none.ratings)) == (False, len(BASE))
    assert "the study does without times" in note(none, "seconds since")
    assert "days_covered" not in describe(Interactions.from_frame(none.ratings, scale=none.scale))


def test_the_latest_rating_counts(tmp_path: Path) -> None:
    late = BASE.head(1).assign(rating=5, timestamp=3 * 10**9)
    table = pd.concat([late, BASE.assign(timestamp=10**9)])  # the latest stands first
    found = own_data.read(written(tmp_path, table))
    assert found.ratings.query("user_id == 'own_u0' and item_id == 'i0'")["rating"].tolist() == [5]


# ---- items, and what the tables become


def test_items_are_joined_and_gaps_filled(tmp_path: Path) -> None:
    items = pd.DataFrame(
        [("i0", "Zero", "1999-05-01", "['Jazz', 'Blues']"), ("i0", "again", "", ""), ("i1", "", "soon", ""),
         ("new", "Never rated", "2020.0", "Jazz")],
        columns=["id", "name", "release_date", "category"],
    )  # fmt: skip
    found = own_data.read(written(tmp_path, BASE), written(tmp_path, items, "items.csv"))
    fetched = own_data.of_own("mine", found)
    tables = ingest.build(fetched)
    catalogue.check(tables.ratings, tables.items, found.scale, "own_")
    known = tables.items.set_index("item_id")
    assert known.loc["i0", ["title", "year", "genres"]].tolist() == ["Zero", 1999, ["Jazz", "Blues"]]
    assert known.loc["i1", "title"] == "i1"
    assert pd.isna(known.loc["i1", "year"])
    assert known.loc["new", "year"] == 2020
    assert len(known) == 31
    assert "names 3; it lacks 28 rated items; 1 of its rows" in note(found, "table of items")
    meta = tables.meta(fetched)
    assert (meta["dataset"], meta["has_time"], meta["source"]) == ("mine", False, "own table")
    assert set(meta["hashes"]) == {"mine.csv", "items.csv"}
    assert meta["notes"] == list(found.notes)


def test_a_published_name_and_a_forgotten_table_are_told_apart(tmp_path: Path) -> None:
    found = own_data.read(written(tmp_path, BASE))
    with pytest.raises(InputError, match="ml-100k is a published data set"):
        own_data.of_own("ml-100k", found)
    with pytest.raises(InputError, match=r"--set dataset\.ratings=FILE"):
        fetch("own-data", raw=tmp_path)
    with pytest.raises(InputError, match=r"describe the table that dataset\.ratings names"):
        config.load(ROOT / "params" / "own-data.yaml", ["dataset.scale=0-10"])


# ---- whatever a file holds, an InputError at worst


def refused_or_read(content: bytes, folder: Path, name: str = "any") -> None:
    path = folder / name
    path.write_bytes(content)
    good = folder / "good.csv"
    if not good.exists():
        BASE.to_csv(good, index=False)
    for arguments in ((path,), (good, path)):
        try:
            own_data.read(*arguments)
        except InputError as error:
            said = str(error)
            assert len(said) < 1500


def forms() -> dict[str, bytes]:
    parquet = io.BytesIO()
    BASE.head(50).to_parquet(parquet)
    text = BASE.to_csv(index=False).encode()
    return {
        "csv": text,
        "gzip": gzip.compress(text),
        "parquet": parquet.getvalue(),
        "utf-16": text.decode().encode("utf-16"),
    }


FORMS = forms()
FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(st.binary(max_size=400) | st.text(max_size=200).map(str.encode))
def test_random_bytes_are_told_what_is_wrong(tmp_path: Path, content: bytes) -> None:
    refused_or_read(content, tmp_path)
    refused_or_read(b"user,item,rating\n" + content, tmp_path)


@FUZZ
@given(st.sampled_from(sorted(FORMS)), st.data())
def test_damaged_tables_are_read_or_refused(tmp_path: Path, form: str, data: st.DataObject) -> None:
    content = bytearray(FORMS[form][: data.draw(st.integers(0, len(FORMS[form])))])
    for _ in range(data.draw(st.integers(0, 5))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    refused_or_read(bytes(content), tmp_path)


CELL = st.text(max_size=12) | st.sampled_from(
    ["", "nan", "1e400", "-5", "0", "2019-13-45", "9" * 5000, '"', "NaT", "٣", "1_0"]
)


@FUZZ
@given(st.lists(st.tuples(CELL, CELL, CELL, CELL), max_size=30))
def test_any_cells_among_good_rows_are_read_or_refused(tmp_path: Path, rows: list[tuple[str, ...]]) -> None:
    odd = pd.DataFrame(rows, columns=["user", "item", "rating", "time"], dtype=str)
    good = BASE.set_axis(["user", "item", "rating"], axis=1).assign(time=range(10**9, 10**9 + len(BASE)))
    refused_or_read(pd.concat([odd, good]).to_csv(index=False).encode(errors="replace"), tmp_path)


def test_a_cell_of_ten_megabytes_does_not_hang(tmp_path: Path) -> None:
    for big in ("x" * 10_000_000, "9" * 10_000_000, '"' + "x," * 5_000_000):
        text = f"user,item,rating\nu1,{big},3\n{big},i1,4\nu1,i2,{big}\n".encode()
        refused_or_read(text, tmp_path)
        refused_or_read(text + BASE.to_csv(index=False, header=False).encode(), tmp_path)


# ---- whole runs


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder of its own, so that no run of the tests is taken for the newest real one."""
    root = tmp_path_factory.mktemp("project")
    for name in ("notebooks", "recsys_utils", "recsys_study", "requirements.lock"):
        (root / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "params", root / "params")
    return root


# the settings of a run decide its time, not what its report may say of such tables
QUICK = {
    "03_cf_grid_search": {
        "svd_grid": {"n_factors": [3, 5], "n_epochs": [60], "lr": [0.01], "reg": [0.1]},
        "knn_grid": {"kind": ["KNNBaseline"], "similarity": ["msd"], "user_based": [False], "k": [20, 40],
                     "min_support": [1]},
    },
    "05_latent_traits": {"n_factors": [2], "sweeps": 8},
    "06_alpha_curve": {
        "svd_settings": [{"n_factors": 5, "n_epochs": 60, "lr": 0.01, "reg": 0.05}],
        "knn_settings": [{"kind": "KNNBaseline", "similarity": "msd", "user_based": False, "k": 40, "min_support": 3}],
        "item_knn_settings": [{"k": 100, "shrink": 10.0, "binarise": "liked"}],
    },
    "08_elicitation": {"counts": [0, 5, 10]},
    "09_freshness": {"max_refits": 6},
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "lacks"),
    [
        pytest.param(half_stars, ("no time stamps", "no content model", "lists show ids"), marks=pytest.mark.slow),
        pytest.param(tracks, (), marks=pytest.mark.slow),
        pytest.param(points, (), marks=pytest.mark.slow),
        pytest.param(
            few, ("no time stamps", "no content model", "lists show ids", "fewer than 10"), marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_run_ends_with_a_report_that_says_what_it_could_not_do(
    project: Path, make: Callable[[Path], dict[str, str]], lacks: tuple[str, ...]
) -> None:
    name = make.__name__
    tables = make(project)
    parameters = {"extends": "smoke.yaml", "dataset": {"name": name, **tables}, **QUICK}
    (project / "params" / f"{name}.yaml").write_text(json.dumps(parameters), encoding="utf-8")
    command = [sys.executable, "-m", "recsys_study.cli", "run", str(project / "params" / f"{name}.yaml")]
    environment = os.environ | {"RECSYS_ROOT": str(project)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report = project / "reports" / name
    metrics = pd.read_csv(report / "tables" / "metrics.csv", keep_default_na=False, na_values={"value": [""]})
    assert np.isfinite(metrics[["value", "ci_low", "ci_high", "n"]].to_numpy(np.float64)).all()
    variants = " ".join(metrics["variant"])
    page = (report / "index.html").read_text(encoding="utf-8")
    assert ("can’t answer" in page or "can't answer" in page) == bool(lacks)
    assert not [sentence for sentence in lacks if sentence not in page]
    assert ("content" in set(metrics["model"])) == ("no content model" not in lacks)
    assert ("order=time" in variants) == ("no time stamps" not in lacks)
    answers = {f["id"]: f["answer"] for f in json.loads((report / "findings.json").read_text(encoding="utf-8"))}
    assert not [text for text in answers.values() if re.search(r"\bnan\b", text)]
    about_genres = {metric.partition("@")[0] for metric in metrics["metric"]} & {"ild", "calibration_error"}
    assert bool(about_genres) == ("no content model" not in lacks)  # the tables with text are those with genres
    found = pd.read_csv(report / "recommendations.csv", dtype=str, keep_default_na=False)
    assert found["user_id"].str.startswith("own_").all()
