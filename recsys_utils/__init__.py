"""Shared logic of the recommender study; the notebooks ask, this package computes."""

__version__ = "0.1.0"
