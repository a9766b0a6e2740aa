"""The study: what each notebook asks, its figures and findings, the pipeline, the report and the command line.

A notebook starts with ``from recsys_study import Stage`` and the module of its question. Names are imported when
used, so that the command line starts at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys_study.findings import Contrast
    from recsys_study.stage_files import Stage

__all__ = ["Contrast", "Stage"]
_HOMES = {"Contrast": "recsys_study.findings", "Stage": "recsys_study.stage_files"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
