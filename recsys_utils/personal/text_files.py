"""Files that people give: from bytes to text, and a rating scale as they write it."""

from __future__ import annotations

import codecs
import gzip
import io
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from recsys_utils.base import InputError, Scale
from recsys_utils.data.fetch import UNREADABLE

_SHOWN = 5


def content(source: str | Path, name: str, limit: int) -> bytes:
    """The bytes of a file or of standard input ("-"), gunzipped; InputError when unreadable or above ``limit``."""
    try:
        if str(source) == "-":
            found = sys.stdin.buffer.read(limit + 1)
        else:
            with Path(source).expanduser().open("rb") as stream:
                found = stream.read(limit + 1)
        if found.startswith(b"\x1f\x8b"):
            found = gzip.GzipFile(fileobj=io.BytesIO(found)).read(limit + 1)
    except FileNotFoundError:
        raise InputError(f"There is no file {name}; check the path.") from None
    except (*UNREADABLE, ValueError) as error:
        raise InputError(f"{name} can't be read: {getattr(error, 'strerror', None) or error}.") from None
    if len(found) > limit:
        raise InputError(f"{name} is larger than {limit >> 20} MB, the most that is read.")
    if found.startswith(b"PK\x03\x04") and b"xl/workbook.xml" in found:
        raise InputError(f"{name} is an Excel workbook; save the sheet as CSV and give that.")
    return found


def decoded(content: bytes, name: str, expected: str) -> tuple[str, list[str]]:
    """Text in UTF-8, UTF-16 or, where it can be neither, Latin-1, and a note in that case; InputError for no text."""
    encoding, notes = "utf-8-sig", []
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif content.count(0) * 3 > len(content):  # every other byte of Latin text in UTF-16
        encoding = "utf-16-le" if content[1::2].count(0) > content[::2].count(0) else "utf-16-be"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
        notes = [f"{name} is not UTF-8 and was read as Latin-1."]
    if "\0" in text or (notes and re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)):
        raise InputError(f"{name} is a binary file, no text in UTF-8; expected {expected}.")
    if not text.strip():
        raise InputError(f"{name} is empty; expected {expected}.")
    return text, notes


def parse_scale(text: str) -> Scale:
    """A scale as a person writes it.

    >>> parse_scale("1-10").hi, parse_scale("0.5-5").lo, parse_scale("-10-10").lo
    (10.0, 0.5, -10.0)
    """
    number = r"\s*(-?\d+(?:\.\d+)?)\s*"
    found = re.fullmatch(rf"\s*\[?{number}(?:-|to|\.\.|,){number}\]?\s*", text)
    if not found:
        raise InputError(f"{text[:40]!r} is not a rating scale; write its ends, such as 1-10 or 0.5-5.")
    return Scale(float(found[1]), float(found[2]))


def listed(texts: Sequence[str]) -> str:
    """The first few texts, and how many more there are."""
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(texts[:_SHOWN]) + more
