"""Three shapes of load for a vLLM server, from a fixed seed: what is asked, when, and with which server flags.

steady: one request after the other, evenly. bursts: twenty at once, then a pause. mixed: prompts of all lengths, many
of them beginning alike, a prefix cache, chunked prefill, and a KV pool that is too small for all: some are preempted.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from vllm_server import SERVED_AS, Client

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Words = Callable[[random.Random, int], list[int]]
"""Draws the ids of so many tokens."""
BURST = 20
BEGINNING = 96


@dataclass(frozen=True)
class Ask:
    """One request: its name, when it is sent (seconds), its prompt as ids, and how long its answer may be."""

    name: str
    at: float
    ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Load:
    """A shape of load: the server's flags and what is asked of it."""

    flags: tuple[str, ...]
    asks: tuple[Ask, ...]


PLAIN = ("--max-model-len", "1024", "--no-enable-prefix-caching")
CROWDED = (
    "--max-model-len", "1024", "--enable-prefix-caching", "--block-size", "32", "--num-gpu-blocks-override", "48",
    "--max-num-batched-tokens", "128", "--max-num-seqs", "16",
)  # fmt: skip


def random_ids(vocabulary: int) -> Words:
    """Return words that mean nothing: any ids but the first few, which models keep for themselves."""
    return lambda draw, count: [draw.randrange(3, vocabulary) for _ in range(count)]


def stretches(text: Sequence[int]) -> Words:
    """Return words that mean something: so many tokens in a row from anywhere in a text."""

    def words(draw: random.Random, count: int) -> list[int]:
        start = draw.randrange(len(text) - count)
        return list(text[start : start + count])

    return words


def loads(count: int, words: Words, apart_s: float) -> dict[str, Load]:
    """Return the three shapes. apart_s: mean seconds between requests."""
    return {
        "steady": Load(PLAIN, tuple(_ask("steady", at, at * apart_s, _plain(at, words)) for at in range(count))),
        "bursts": Load(PLAIN, tuple(
            _ask("bursts", at, at // BURST * BURST * apart_s, _plain(at, words)) for at in range(count)
        )),
        "mixed": Load(CROWDED, tuple(
            _ask("mixed", at, at // 8 * 8 * apart_s, _sharing(at, words)) for at in range(count)
        )),
    }  # fmt: skip


def in_rounds(asks: Sequence[Ask], size: int) -> Iterator[list[Ask]]:
    """Yield so many requests at a time, timed from the first of them."""
    for start in range(0, len(asks), size):
        some = asks[start : start + size]
        yield [replace(one, at=one.at - some[0].at) for one in some]


def ask_rounds(python: str, port: int, rounds: Iterable[Sequence[Ask]], *, emptied: bool = False) -> float:
    """Ask a warm server as clients do, each round when the one before is answered; return the seconds that it took.

    The OpenAI client runs in `python`, where vLLM has brought it along. emptied: the prefix cache, before each round.
    """
    told = json.dumps({"port": port, "emptied": emptied, "rounds": [list(map(asdict, some)) for some in rounds]})
    done = subprocess.run([python, __file__], input=told, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the client failed:\n{done.stderr[-3000:]}")
    return float(done.stdout)


async def _ask_rounds(port: int, rounds: list[list[dict[str, Any]]], emptied: bool) -> float:
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused", timeout=600) as client:

        async def ask(name: str, at: float, ids: list[int], max_tokens: int) -> None:
            await asyncio.sleep(at)
            await client.completions.create(model=SERVED_AS, prompt=ids, max_tokens=max_tokens, temperature=0,
                                            extra_headers={"X-Request-Id": name})  # fmt: skip

        await ask("warmup", 0.0, [5, 6, 7], 4)
        started = time.monotonic()
        for some in rounds:
            if emptied:
                await Client("", port, 0).reset_cache()
            await asyncio.gather(*(ask(**one) for one in some))
        return time.monotonic() - started


def _ask(shape: str, at: int, when: float, ids: tuple[int, ...]) -> Ask:
    return Ask(f"{shape}-{at:04d}", round(when, 4), ids, _seeded(f"{shape} {at}").randint(8, 48))


def _plain(at: int, words: Words) -> tuple[int, ...]:
    draw = _seeded(f"plain {at}")
    return tuple(words(draw, draw.randint(8, 120)))


def _sharing(at: int, words: Words) -> tuple[int, ...]:
    """Return a prompt that begins like a third of all others do, and goes on by itself."""
    common, own = _seeded(f"beginning {at % 3}"), _seeded(f"sharing {at}")
    shared = own.choice((0, 32, 64, 96))
    return tuple(words(common, BEGINNING)[:shared] + words(own, own.randint(5, 250)))


def _seeded(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same load every time; nothing here is a secret


if __name__ == "__main__":
    print(asyncio.run(_ask_rounds(**json.load(sys.stdin))))
