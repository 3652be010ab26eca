"""Pickles that hold plain data and nothing else: no byte of one is run, nothing is imported.

A pickle is a program. This one may only build dicts, lists, tuples, strings, numbers, booleans and None: its
instructions are looked at before the first is carried out, and names of code are refused a second time while they are.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any, Final

ALLOWED: Final = {
    "PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT",
    "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE",
    "BINUNICODE8", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "LIST", "APPEND", "APPENDS",
    "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET",
    "LONG_BINGET",
}  # fmt: skip
PUTS: Final = ("PUT", "BINPUT", "LONG_BINPUT")


class NotPlain(Exception):  # noqa: N818 - a judgement of a file
    """The bytes are no pickle, or one that is more than plain data; the message says which."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise NotPlain("it names code")

    def persistent_load(self, pid: Any) -> Any:
        raise NotPlain("it names objects outside of it")


def loads(raw: bytes) -> Any:
    """Return what a pickle of plain data holds. Raises NotPlain. Nothing in it is larger than the bytes allow."""
    try:
        for instruction, argument, place in pickletools.genops(raw):
            if instruction.name not in ALLOWED:
                raise NotPlain(f"more than plain data: {instruction.name} at byte {place}")
            if instruction.name in PUTS and not 0 <= int(argument or 0) <= len(raw):
                raise NotPlain(f"a memo of {argument} places at byte {place}")
        return _Reader(io.BytesIO(raw)).load()
    except (pickle.UnpicklingError, ValueError, EOFError, IndexError, TypeError, KeyError, OverflowError) as fault:
        raise NotPlain(f"damaged: {str(fault) or type(fault).__name__}") from None
