"""Declared contrasts of notebooks that do not conclude yet."""

from __future__ import annotations

from typing import Any

from recsys_utils.evaluation.significance import MARGIN, Estimate, minimum_detectable_difference, verdict


def primary_contrast(question: str, contrast: str, difference: Estimate, margin: float = MARGIN) -> dict[str, Any]:
    """The verdict and minimum detectable difference of a contrast."""
    return {
        "contrast": contrast,
        "mdd": minimum_detectable_difference(difference),
        "verdict": verdict(difference, margin),
    }
