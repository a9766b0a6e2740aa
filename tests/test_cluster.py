"""Tasks on a cluster: what travels, the same numbers as here, and what a lost worker costs."""

from __future__ import annotations

import json
import os
import pickle
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from distributed import default_client
from joblib import Parallel, delayed, parallel_config

from recsys_study import dask_cluster as cluster
from recsys_utils.base import InputError, Scale
from recsys_utils.data import interactions
from recsys_utils.data.interactions import Interactions, read_interactions
from recsys_utils.data.synthetic import generate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage folder as 01_ingest leaves it."""
    made, base = generate(), tmp_path_factory.mktemp("run") / "01_ingest"
    base.mkdir()
    made.ratings.to_parquet(base / "interactions.parquet")
    made.items[["item_id"]].to_parquet(base / "items.parquet")
    pd.DataFrame({"user_id": sorted(set(made.ratings["user_id"]))}).to_parquet(base / "users.parquet")
    (base / "meta.json").write_text(json.dumps({"scale": {"lo": 1, "hi": 5, "liked_override": None}}))
    return base


def same(a: Interactions, b: Interactions) -> bool:
    return all(np.array_equal(getattr(a, c), getattr(b, c)) for c in ("users", "items", "user", "item", "rating"))


def test_a_part_travels_as_a_path_and_its_rows(folder: Path) -> None:
    data = read_interactions(folder)
    mask = np.random.default_rng(3).random(len(data)) < 0.4
    part = data.where(mask)
    part = part.where(part.rating >= 3)
    sent = pickle.dumps(part)
    assert len(sent) < len(data) / 8 + 1000  # a bit a rating, the path and the names of the types
    assert same(pickle.loads(sent), part)
    assert same(pickle.loads(pickle.dumps(data)), data)


def test_changed_ratings_travel_themselves(folder: Path) -> None:
    """What is no longer in the file must not come back from it."""
    data = read_interactions(folder)
    changed = replace(data, rating=6 - data.rating)
    assert same(pickle.loads(pickle.dumps(changed)), changed)
    assert same(pickle.loads(pickle.dumps(changed.where(changed.rating > 2))), changed.where(changed.rating > 2))


def test_a_file_replaced_meanwhile_is_noticed(folder: Path) -> None:
    sent = pickle.dumps(read_interactions(folder))
    file = folder / "interactions.parquet"
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    interactions._read.cache_clear()  # as in a process that did not read the file before
    with pytest.raises(RuntimeError, match="was replaced"):
        pickle.loads(sent)


@pytest.mark.parametrize("address", ["local:0", "local:x", "here", "http://a:1", "tcp://a"])
def test_an_address_of_another_form_is_refused(address: str) -> None:
    with (
        pytest.raises(InputError, match=r"tcp://HOST:PORT of a Dask scheduler, or local:N; got"),
        cluster.opened(address),
    ):
        pass


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "_TIMEOUT", "0.2s")
    with (
        pytest.raises(InputError, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:9 "),
        cluster.opened("tcp://127.0.0.1:9"),
    ):
        pass


def mean_rating(part: Interactions, seed: int) -> tuple[float, int]:
    time.sleep(0.05)
    return float(np.random.default_rng(seed).choice(part.rating, 50).mean()), os.getpid()


def test_two_workers_give_the_numbers_of_one_and_a_lost_one_costs_its_tasks_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = read_interactions(folder)
    tasks = [delayed(mean_rating)(data.where(data.user % 5 != fold), fold) for fold in range(5) for _ in range(12)]
    here = [value for value, _ in Parallel(n_jobs=1)(tasks)]
    with parallel_config(), cluster.opened("local:2") as address:
        monkeypatch.setenv(cluster.VARIABLE, address)
        cluster.join()
        there = Parallel(n_jobs=2)(tasks)
        workers = sorted({process for _, process in there})
        assert [value for value, _ in there] == here
        assert len(workers) == 2
        assert os.getpid() not in workers
        found = Parallel(n_jobs=2, return_as="generator")(tasks)
        first = [next(found) for _ in range(4)]
        os.kill(workers[0], signal.SIGKILL)
        assert [value for value, _ in [*first, *found]] == here
        default_client().close()


def test_without_an_address_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cluster.VARIABLE, raising=False)
    with cluster.opened("") as address:
        assert address == ""
    cluster.join()
    assert Parallel(n_jobs=2)(delayed(abs)(x) for x in (-1, -2)) == [1, 2]


def test_interactions_made_by_hand_travel_whole() -> None:
    frame = pd.DataFrame({"user_id": ["a", "b"], "item_id": ["x", "x"], "rating": [1.0, 5.0]})
    data = Interactions.from_frame(frame, scale=Scale(1, 5))
    assert same(pickle.loads(pickle.dumps(data)), data)
