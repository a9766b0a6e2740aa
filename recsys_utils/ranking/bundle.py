"""The exported recommender: a folder of plain arrays and tables under a manifest, without any pickle.

    manifest.json       schema, models, curve, diversity, scale, data set, licence, and the sha256 of every other file
    content.npz, cf.npz, popularity.npz     the arrays of each model's ``state()``
    catalogue.parquet   item_id, title, year, genres, tmdb_id, imdb_id, in the models' item order; further film facts
    neighbours/         optional, the store of `neighbours`: it holds every user's ratings, so it may go no further than
                        the data set's licence allows

Opening checks every hash first, so what is served is what was exported.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recsys_utils.base import ITEM, InputError, Scale
from recsys_utils.models.neighbours import Neighbours
from recsys_utils.ranking.hybrid import AlphaCurve, Hybrid
from recsys_utils.ranking.recommend import MODELS, HybridRecommender

SCHEMA = 2
MANIFEST = "manifest.json"
CATALOGUE = "catalogue.parquet"
CATALOGUE_COLUMNS = [ITEM, "title", "year", "genres", "tmdb_id", "imdb_id"]
FILM_FACTS = ["directors", "actors", "runtime", "imdb_rating", "imdb_votes"]  # kept where the catalogue has them
PARTS = ("content", "cf", "popularity")
NEIGHBOURS = "neighbours"


@dataclass(frozen=True)
class Bundle:
    """A recommender read back from its folder.

    Parameters
    ----------
    recommender : ready to recommend; ``.hybrid`` holds the models, ``.items`` the catalogue
    scale : of the ratings it was trained on and expects
    manifest : what the export recorded
    folder : where it lies
    """

    recommender: HybridRecommender
    scale: Scale
    manifest: dict[str, Any]
    folder: Path

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read a bundle after checking schema and hashes.

        Raises
        ------
        InputError : no bundle there, a newer schema, a file missing or changed.
        """
        manifest = _read_manifest(folder)
        try:
            return cls._from_manifest(folder, manifest)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / MANIFEST} is damaged ({error!r}). Export the bundle again.") from None

    @classmethod
    def _from_manifest(cls, folder: Path, manifest: dict[str, Any]) -> Self:
        content, cf, popularity = (_read_model(folder, manifest, part) for part in PARTS)
        hybrid = Hybrid(content, cf, AlphaCurve.from_json(manifest["curve"]), popularity)
        items = pd.read_parquet(io.BytesIO(_checked(folder, manifest, CATALOGUE)))
        diversity = manifest["diversity"]
        recommender = HybridRecommender(hybrid, items, diversity["strategy"], diversity["ratio"], manifest["seed"])
        return cls(recommender, Scale(**manifest["scale"]), manifest, folder)

    def neighbours(self) -> Neighbours:
        """The store of neighbours, mapped into memory once its hashes are the recorded ones.

        Raises
        ------
        InputError : the bundle has none, or it was changed.
        """
        files = [name for name in self.manifest["files"] if name.startswith(NEIGHBOURS)]
        if not files:
            raise InputError(f"The bundle {self.folder} holds no neighbours; export it again with this version.")
        for name in files:
            _checked(self.folder, self.manifest, name)
        return Neighbours.open(self.folder / NEIGHBOURS)


def write_bundle(
    folder: Path,
    recommender: HybridRecommender,
    scale: Scale,
    about: Mapping[str, Any],
    neighbours: Neighbours | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write a recommender to ``folder``, whole or not at all; a bundle that is there is replaced.

    The bytes depend on the models and ``about`` alone.

    Parameters
    ----------
    recommender : with fitted models
    scale : of the ratings
    about : JSON values to record: data set, licence notice, settings ...
    neighbours : fitted on the same catalogue

    Returns
    -------
    the manifest
    """
    hybrid = recommender.hybrid
    models = {part: getattr(hybrid, part) for part in PARTS}
    contents = {f"{part}.npz": _npz(model.state()) for part, model in models.items()}
    table = io.BytesIO()
    known = [*CATALOGUE_COLUMNS, *(c for c in FILM_FACTS if c in recommender.items)]
    recommender.items[known].to_parquet(table, index=False, compression="zstd")
    contents[CATALOGUE] = table.getvalue()
    if neighbours is not None:
        contents |= {f"{NEIGHBOURS}/{name}.npy": _npy(array) for name, array in neighbours.state().items()}
    manifest = {
        "schema": SCHEMA,
        "models": {part: model.name for part, model in models.items()},
        "curve": hybrid.curve.to_json(),
        "diversity": {"strategy": recommender.exploration, "ratio": recommender.ratio},
        "seed": recommender.seed,
        "scale": {"lo": scale.lo, "hi": scale.hi, "liked_override": scale.liked_override},
        "about": dict(about),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    contents[MANIFEST] = (json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        fresh, old = Path(scratch, "new"), Path(scratch, "old")
        fresh.mkdir()
        for name, data in contents.items():
            (fresh / name).parent.mkdir(exist_ok=True)
            (fresh / name).write_bytes(data)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    return manifest


def _npz(state: Mapping[str, NDArray[Any]]) -> bytes:
    """An .npz without time stamps, so that equal arrays give equal bytes (numpy's own writer records the time)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in state.items():
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), _npy(array), zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        schema = manifest["schema"]
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{folder} is no bundle: it has no {MANIFEST}. A finished run leaves one in reports/<run>/bundle."
        ) from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{folder / MANIFEST} is damaged: not the JSON an export writes. Export it again.") from None
    if schema != SCHEMA:
        raise InputError(
            f"The bundle {folder} has schema {schema!r}, this version reads {SCHEMA}: "
            "update recsys_utils, or export the bundle again with this version."
        )
    return dict(manifest)


def _checked(folder: Path, manifest: dict[str, Any], name: str) -> bytes:
    """The bytes of a file of the bundle, once their hash is the recorded one."""
    expected = manifest["files"][name]
    try:
        data = (folder / name).read_bytes()
    except FileNotFoundError:
        raise InputError(f"The bundle {folder} lacks {name}, which its manifest lists. Export it again.") from None
    found = hashlib.sha256(data).hexdigest()
    if found != expected:
        raise InputError(
            f"{folder / name} is not the file that was exported: its sha256 is {found}, the manifest says {expected}. "
            "Export the bundle again or copy it anew."
        )
    return data


def _read_model(folder: Path, manifest: dict[str, Any], part: str) -> Any:
    name = manifest["models"][part]
    if name not in MODELS:
        raise InputError(f"The bundle {folder} needs the model {name!r}; this version knows {', '.join(MODELS)}.")
    data = io.BytesIO(_checked(folder, manifest, f"{part}.npz"))
    try:
        with np.load(data, allow_pickle=False) as arrays:
            return MODELS[name].from_state(dict(arrays))
    except (ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder / part}.npz is damaged: {error}. Export the bundle again.") from None
