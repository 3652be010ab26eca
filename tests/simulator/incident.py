"""One incident: the log of the arms, and the truth by intervention.

The same world is run three times: without anything (the reference arm), with decoys only, and with the cause. A cause
is the root only if the target's answer differs from the reference with it, and does not without it. The truth lies
beside the log, never in it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from tests.simulator.causes import CAUSES, DECOYS, HEAVY
from tests.simulator.numerics import Chosen
from tests.simulator.recorder import write
from tests.simulator.records import Facts
from tests.simulator.truth import chain
from tests.simulator.world import World

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.simulator.replica import Launch

PROMPTS = 60
TRAFFIC_OF_ITS_OWN = 500_000_000  # added to a seed


@dataclass(frozen=True)
class Setting:
    """What is to be simulated. level 'zero' plants nothing; background: how the arms differ without the cause.

    paired: two replicas, the same arrivals and the same jitter until the cause. mirrored: the same arrivals, each its
    own jitter. live: two replicas with traffic of their own. idle: nobody else.
    dp: replicas in all; those beyond the first two see the reference's world with traffic of their own.
    """

    seed: int
    causes: tuple[str, ...]
    level: str = "moderate"
    background: str = "paired"
    loss: float = 0.0
    clock_error_ms: float = 0.0
    decoys: int = 0
    blind: bool = False
    dp: int = 2


@dataclass(frozen=True)
class Truth:
    """What is known about an incident because we made it: of this pair of requests, and of no other in the log.

    roots: right answers ('none': nothing diverged).
    """

    setting: Setting
    request: str
    against: str
    roots: tuple[str, ...]
    chain: tuple[str, ...]
    flip: int | None
    decoys: tuple[str, ...]


@dataclass(frozen=True)
class Played:
    """A world and its launches; `asked` is the answer to a prompt that they give."""

    world: World
    launches: list[Launch]

    def asked(self, prompt: str, which: str = "asked") -> list[Chosen]:
        """Return the chosen tokens of the request, or of its quiet repeat ('early')."""
        return self.world.answers(self.launches, prompt)[f"{which}-{self.world.name}"]


def make(setting: Setting, folder: Path) -> Truth:
    """Simulate one incident and write `folder`/log/*.jsonl and `folder`/truth.json."""
    decoys = tuple(sorted(Random(f"decoys/{setting.seed}").sample(sorted(DECOYS), setting.decoys)))
    calm, innocent, guilty = _worlds(setting, decoys)
    everything = tuple(plant for plants in guilty.values() for plant in plants)
    arms = [_played(one) for one in (calm, innocent, replace(innocent, plants=(*innocent.plants, *everything)))]
    prompt, flip = _prompt(setting, *arms)
    roots, names = ("none",), ()
    if flip is not None:
        alone = {
            name: _played(replace(innocent, plants=(*innocent.plants, *plants))) for name, plants in guilty.items()
        }
        roots = _roots(arms[0], alone, prompt, flip)
        names = _links(*arms, prompt=prompt, roots=roots, flip=flip)
    truth = Truth(
        setting, "asked-b", "asked-a", ("undetermined",) if setting.blind and names else roots, names, flip, decoys
    )
    others = [
        World(
            "cdefgh"[i], (), f"{setting.seed}/{i}", setting.seed + (i + 2) * TRAFFIC_OF_ITS_OWN, calm.rate, calm.ranks
        )
        for i in range(setting.dp - 2)
    ]
    _write(setting, folder / "log", [calm, arms[2].world, *others], prompt)
    (folder / "truth.json").write_text(json.dumps(asdict(truth), indent=2) + "\n", encoding="utf-8")
    return truth


def first_difference(one: Sequence[Chosen], other: Sequence[Chosen]) -> int | None:
    """Return the first position at which the tokens differ."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a.token != b.token), None)


def _worlds(setting: Setting, decoys: Sequence[str]) -> tuple[World, World, dict[str, tuple]]:
    """Return the reference's world, the target's without a cause, and what each cause plants."""
    planted = [CAUSES[name] for name in setting.causes]
    ranks = max((one.ranks for one in planted), default=2)
    rate = 0.0 if setting.background == "idle" else min((one.rate for one in planted), default=HEAVY)
    jitter = "a" if setting.background in ("paired", "idle") else "b"
    traffic = setting.seed + (TRAFFIC_OF_ITS_OWN if setting.background == "live" else 0)
    calm = World("a", (), f"{setting.seed}/a", setting.seed, rate, ranks)
    innocent = World("b", tuple(DECOYS[one] for one in decoys), f"{setting.seed}/{jitter}", traffic, rate, ranks)
    if setting.level == "zero":
        return calm, innocent, {}
    return calm, innocent, {name: (CAUSES[name].plant(CAUSES[name].levels[setting.level]),) for name in setting.causes}


def _played(world: World) -> Played:
    return Played(world, world.run(""))


def _prompt(setting: Setting, calm: Played, innocent: Played, target: Played) -> tuple[str, int | None]:
    """Return a prompt that is answered alike without the cause, and if there is one, not with it; where it flips.

    Whoever asks without a reference is given any other answer on record: without a flip there must be none.
    """
    quiet: str | None = None
    for number in range(PROMPTS):
        prompt = f"asked-{setting.seed}-{number}"
        reference = calm.asked(prompt)
        alike = [calm.asked(prompt, "early"), innocent.asked(prompt, "early"), innocent.asked(prompt)]
        if any(first_difference(reference, one) is not None for one in alike):
            continue
        if setting.background in ("paired", "idle") and reference != alike[-1]:
            continue  # here nothing but the cause may move a bit
        flip = first_difference(reference, target.asked(prompt))
        if flip is not None:
            return prompt, flip
        if first_difference(reference, target.asked(prompt, "early")) is None:
            quiet = quiet or prompt
    if quiet is None:
        raise RuntimeError(f"{setting}: {PROMPTS} prompts, and none is answered alike in all calm runs")
    return quiet, None


def _roots(calm: Played, alone: dict[str, Played], prompt: str, flip: int) -> tuple[str, ...]:
    """Return the right answers: of several causes those that give this flip by themselves, else all together."""
    reference = calm.asked(prompt)
    enough = [name for name, one in alone.items() if first_difference(reference, one.asked(prompt)) == flip]
    return tuple(dict.fromkeys(root for name in enough or alone for root in CAUSES[name].roots))


def _links(
    calm: Played, innocent: Played, target: Played, *, prompt: str, roots: tuple[str, ...], flip: int
) -> tuple[str, ...]:
    pairs = zip(calm.asked(prompt)[: flip + 1], target.asked(prompt), strict=False)
    drifted = any(one.sha256 != other.sha256 for one, other in pairs)
    return chain(innocent.launches, target.launches, roots, flip, drifted=drifted)


def _write(setting: Setting, log: Path, worlds: list[World], prompt: str) -> None:
    log.mkdir(parents=True, exist_ok=True)
    unseen = frozenset().union(*(CAUSES[name].blind for name in setting.causes)) if setting.blind else frozenset()
    for world in worlds:
        run_id, launches = f"sim-{setting.seed}-{world.name}", world.run(prompt)
        facts = Facts(run_id, world.name, world.weights, world.token_rule, world.engine, unseen)
        said = _hearsay(launches) | world.answers(launches, prompt)
        write(log / f"{run_id}.jsonl", facts, launches, said, clock_error_ms=setting.clock_error_ms, loss=setting.loss,
              seed=f"{setting.seed}/{world.name}")  # fmt: skip


def _hearsay(launches: Sequence[Launch]) -> dict[str, list[Chosen]]:
    """Return answers of requests that nobody asks about: tokens by their prompt alone, at clear margins."""
    found: dict[str, list[Chosen]] = {}
    for ask in {row.ask.req_id: row.ask for one in launches for row in one.rows}.values():
        draw = Random(ask.text)
        ids = [draw.randrange(2, 32000) for _ in range(ask.output_tokens)]
        found[ask.req_id] = [Chosen(one, (one, one + 1), (20.0, 18.0)) for one in ids]
    return found
