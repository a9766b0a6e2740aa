"""The exported folder: what goes in comes out bit for bit, and nothing else is let in."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys_utils.base import InputError, Recommender, Scale
from recsys_utils.data.interactions import Interactions
from recsys_utils.models.content import ContentModel
from recsys_utils.models.neighbours import Neighbours
from recsys_utils.models.rankers import EASE, ItemKNN, Popularity
from recsys_utils.models.surprise_models import KNN, SVD
from recsys_utils.ranking.bundle import MANIFEST, SCHEMA, Bundle, _npz, write_bundle
from recsys_utils.ranking.hybrid import CURVES, Hybrid, WeightedEnsemble
from recsys_utils.ranking.recommend import HybridRecommender

SCALE = Scale(0.5, 5, liked_override=4)
ABOUT = {"dataset": "toy", "licence": "Made up; do as you please."}


@pytest.fixture(scope="module")
def train() -> Interactions:
    rng = np.random.default_rng(2)
    user, item = np.nonzero(rng.random((40, 25)) < 0.4)
    ids = [f"{i:02d}" for i in range(25)]
    frame = pd.DataFrame({"user_id": user.astype(str), "item_id": np.array(ids)[item]})
    frame["rating"] = rng.integers(1, 11, len(frame)) / 2
    return Interactions.from_frame(frame, scale=SCALE, items=ids)


def make(train: Interactions, cf: Recommender) -> HybridRecommender:
    n = len(train.items)
    items = pd.DataFrame(
        {
            "item_id": train.items, "title": [f"Filmé {i}" for i in range(n)],
            "year": pd.array([None, *range(1971, 1970 + n)], dtype="Int64"),
            "genres": [["Comedy", "Sci-Fi"][: i % 3] for i in range(n)],
            "tmdb_id": None, "imdb_id": [f"tt{i}" for i in range(n)],
        }
    )  # fmt: skip
    blend = Hybrid(ContentModel(items), cf, CURVES["classic"], Popularity()).fit(train)
    return HybridRecommender(blend, items, "genre-repaired", 0.2, seed=11)


@pytest.fixture
def folder(train: Interactions, tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", make(train, EASE(reg=5.0)), SCALE, ABOUT)
    return tmp_path / "bundle"


def rehash(folder: Path, name: str, data: bytes) -> None:
    """Replace a file together with its recorded hash, as one who tampers would."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["files"][name] = hashlib.sha256(data).hexdigest()
    (folder / name).write_bytes(data)
    (folder / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


@pytest.mark.parametrize(
    "cf",
    [
        EASE(reg=5.0),
        ItemKNN(k=7),
        SVD(n_factors=3, n_epochs=2),
        KNN(user_based=True),
        KNN(user_based=False),
        WeightedEnsemble(
            {"popularity": Popularity(), "ease": EASE(reg=5.0)}, [1, 9], {"popularity": [1, 0.1], "ease": [0, 0.9]}
        ),
    ],
    ids=["ease", "item_knn", "svd", "knn-user", "knn-item", "mixture"],
)
def test_round_trip_bit_for_bit(train: Interactions, tmp_path: Path, cf: Recommender) -> None:
    before = make(train, cf)
    write_bundle(tmp_path / "bundle", before, SCALE, ABOUT)
    bundle = Bundle.open(tmp_path / "bundle")
    assert np.array_equal(bundle.recommender.hybrid.scores(train.user_item), before.hybrid.scores(train.user_item))
    users = list(train.users)
    pd.testing.assert_frame_equal(
        bundle.recommender.recommend(train.user_item, users, n=6), before.recommend(train.user_item, users, n=6)
    )
    assert (bundle.scale, bundle.manifest["about"]) == (SCALE, ABOUT)
    assert (bundle.recommender.exploration, bundle.recommender.ratio, bundle.recommender.seed) == (
        "genre-repaired",
        0.2,
        11,
    )


def test_equal_models_give_equal_bytes_and_a_bundle_is_replaced_whole(train: Interactions, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_bundle(tmp_path / name, make(train, EASE(reg=5.0)), SCALE, ABOUT)
    (tmp_path / "b" / "stale.txt").write_text("from before")
    write_bundle(tmp_path / "b", make(train, EASE(reg=5.0)), SCALE, ABOUT)
    contents = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert contents[0] == contents[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]  # no scratch folder is left


def test_a_failed_export_leaves_the_old_bundle(train: Interactions, folder: Path) -> None:
    old = (folder / MANIFEST).read_bytes()
    with pytest.raises(TypeError):
        write_bundle(folder, make(train, EASE(reg=5.0)), SCALE, {"not": object()})
    assert (folder / MANIFEST).read_bytes() == old


def test_arrays_of_objects_are_refused_on_the_way_out() -> None:
    with pytest.raises(ValueError, match="Object arrays cannot be saved"):
        _npz({"tokens": np.array(["a", None], dtype=object)})


def test_a_pickle_is_refused_on_the_way_in_even_with_a_right_hash(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / "content.npz") as arrays:
        state = dict(arrays)
    np.savez(tmp_path / "evil.npz", **(state | {"tokens": state["tokens"].astype(object)}), allow_pickle=True)
    rehash(folder, "content.npz", (tmp_path / "evil.npz").read_bytes())
    with pytest.raises(InputError, match=r"content\.npz.*damaged|damaged.*content\.npz"):
        Bundle.open(folder)


def test_one_flipped_bit_is_found(folder: Path) -> None:
    data = bytearray((folder / "cf.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "cf.npz").write_bytes(data)
    with pytest.raises(InputError, match=r"cf\.npz is not the file that was exported: its sha256 is \w+"):
        Bundle.open(folder)


@pytest.mark.parametrize("name", ["content.npz", "popularity.npz", "catalogue.parquet"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=name):
        Bundle.open(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": SCHEMA + 1}, "schema"),
        ({"models": {"content": "content", "cf": "os.system", "popularity": "popularity"}}, r"the model 'os\.system'"),
        ({"curve": None}, "damaged"),
        ({"files": {}}, "damaged|not the file"),
        ({"scale": {"lo": 5, "hi": 1, "liked_override": None}}, "lo < hi"),
    ],
)
def test_a_manifest_that_can_not_be_honoured(folder: Path, change: dict[str, object], message: str) -> None:
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    (folder / MANIFEST).write_text(json.dumps(manifest | change), encoding="utf-8")
    with pytest.raises(InputError, match=message) as caught:
        Bundle.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\xff"])
def test_a_manifest_that_is_none(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="damaged"):
        Bundle.open(folder)


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no bundle: it has no manifest\.json"):
        Bundle.open(tmp_path / "nowhere")


def test_neighbours_come_along_and_are_checked(train: Interactions, tmp_path: Path, folder: Path) -> None:
    model = Neighbours(k=5, min_overlap=3, min_votes=1).fit(train)
    recommender = make(train, EASE(reg=5.0))
    recommender.items["directors"] = [["X Y"]] * len(recommender.items)
    manifest = write_bundle(tmp_path / "with", recommender, SCALE, ABOUT, model)
    bundle = Bundle.open(tmp_path / "with")
    assert np.array_equal(bundle.neighbours().scores(train.user_item), model.scores(train.user_item))
    assert bundle.recommender.items["directors"].map(list).tolist() == [["X Y"]] * len(recommender.items)
    assert "neighbours/rows.npy" in manifest["files"]
    changed = tmp_path / "with" / "neighbours" / "rows.npy"
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="not the file that was exported"):
        Bundle.open(tmp_path / "with").neighbours()
    with pytest.raises(InputError, match="holds no neighbours"):
        Bundle.open(folder).neighbours()
