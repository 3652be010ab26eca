"""Three shapes of load for a vLLM server, from a fixed seed: what is asked, when, and with which server flags.

steady: one request after the other, evenly. bursts: twenty at once, then a pause. mixed: prompts of all lengths, many
of them beginning alike, a prefix cache, chunked prefill, and a KV pool that is too small for all: some are preempted.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

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


def loads(count: int, vocabulary: int, apart_s: float) -> dict[str, Load]:
    """Return the three shapes. apart_s: mean seconds between requests."""
    return {
        "steady": Load(PLAIN, tuple(_ask("steady", at, at * apart_s, _plain(at, vocabulary)) for at in range(count))),
        "bursts": Load(PLAIN, tuple(
            _ask("bursts", at, at // BURST * BURST * apart_s, _plain(at, vocabulary)) for at in range(count)
        )),
        "mixed": Load(CROWDED, tuple(
            _ask("mixed", at, at // 8 * 8 * apart_s, _sharing(at, vocabulary)) for at in range(count)
        )),
    }  # fmt: skip


def _ask(shape: str, at: int, when: float, ids: tuple[int, ...]) -> Ask:
    return Ask(f"{shape}-{at:04d}", round(when, 4), ids, _seeded(f"{shape} {at}").randint(8, 48))


def _plain(at: int, vocabulary: int) -> tuple[int, ...]:
    draw = _seeded(f"plain {at}")
    return tuple(draw.randrange(3, vocabulary) for _ in range(draw.randint(8, 120)))


def _sharing(at: int, vocabulary: int) -> tuple[int, ...]:
    """Return a prompt that begins like a third of all others do, and goes on by itself."""
    common, own = _seeded(f"beginning {at % 3}"), _seeded(f"sharing {at}")
    beginning = [common.randrange(3, vocabulary) for _ in range(BEGINNING)]
    shared = own.choice((0, 32, 64, 96))
    return tuple(beginning[:shared] + [own.randrange(3, vocabulary) for _ in range(own.randint(5, 250))])


def _seeded(seed: str) -> random.Random:
    return random.Random(seed)  # noqa: S311 - the same load every time; nothing here is a secret
