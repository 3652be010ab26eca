"""What a drill asks: the built-in prompts by family, or a file of the user's."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING

from forensics.errors import BAD_INPUT, ForensicsError
from forensics.text import printable

if TYPE_CHECKING:
    from pathlib import Path

FAMILY = re.compile(r"[A-Za-z0-9_-]{1,40}")
MOST_PROMPTS, MOST_BYTES = 10_000, 64 << 20
FORM = 'one prompt a line, or a line of JSON each: {"family": "code", "prompt": "…"}'


@dataclass(frozen=True)
class Prompt:
    """One prompt. `name`: family and number, part of request ids; `family`: what margins are summed up by."""

    name: str
    family: str
    text: str


def built_in() -> list[Prompt]:
    """Return the prompts that ship with the program: six families, in turn, so that a part of them has all."""
    return _parsed((files("forensics.drill") / "prompts.jsonl").read_text(encoding="utf-8"), "prompts.jsonl")


def from_file(path: Path) -> list[Prompt]:
    """Return the prompts of a file. Raises ForensicsError that names the line."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ForensicsError(f"{path}: larger than {MOST_BYTES >> 20} MiB", BAD_INPUT, f"--prompts takes {FORM}")
        text = path.read_text(encoding="utf-8")
    except OSError as fault:
        raise ForensicsError(
            f"{path}: cannot be read: {fault.strerror}", BAD_INPUT, f"--prompts takes {FORM}"
        ) from None
    except UnicodeDecodeError:
        raise ForensicsError(f"{path}: not UTF-8 text", BAD_INPUT, f"--prompts takes {FORM}") from None
    return _parsed(text, str(path))


def _parsed(text: str, where: str) -> list[Prompt]:
    numbers: Counter[str] = Counter()
    found = []
    for line, raw in enumerate(text.splitlines(), start=1):
        if not raw.strip():
            continue
        family, prompt = _read(raw, f"{where}, line {line}")
        numbers[family] += 1
        found.append(Prompt(f"{family}-{numbers[family]}", family, prompt))
    if not found or len(found) > MOST_PROMPTS:
        raise ForensicsError(f"{where}: {len(found)} prompts; from 1 to {MOST_PROMPTS} can be asked", BAD_INPUT, FORM)
    return found


def _read(raw: str, where: str) -> tuple[str, str]:
    """Return (family, prompt) of one line; a line that begins like a JSON object must be one."""
    if not raw.lstrip().startswith("{"):
        return "prompt", raw
    try:
        one = json.loads(raw)
    except (ValueError, RecursionError) as fault:
        raise ForensicsError(f"{where}: begins like JSON and is none: {fault}", BAD_INPUT, FORM) from None
    family, prompt = one.get("family", "prompt"), one.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise ForensicsError(f"{where}: 'prompt' is not a text", BAD_INPUT, FORM)
    if not isinstance(family, str) or not FAMILY.fullmatch(family):
        named = printable(family, 60)
        raise ForensicsError(f"{where}: 'family' is {named}; letters, digits, - and _ only", BAD_INPUT, FORM)
    return family, prompt
