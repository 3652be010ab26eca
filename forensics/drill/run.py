"""Plan a drill and run it: the engine in processes of its own, under the ordinary recorder."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics import interpreter
from forensics.drill.regimes import AGAIN, IDLE, REGIMES, WITHOUT_POOL
from forensics.errors import BAD_INPUT, INCONCLUSIVE, USAGE, ForensicsError
from forensics.recorded import is_recording
from forensics.recording import Settings, environment, prepare, record

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from forensics.drill.prompts import Prompt
    from forensics.drill.regimes import Regime

PROGRAM = "replay.engines.drill"
MODULE = {
    "transformers": "replay.engines.drill_transformers",
    "transformers-continuous": "replay.engines.drill_transformers",
    "vllm": "replay.engines.drill_vllm",
}
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "VLLM_LOGGING_LEVEL": "ERROR",
         "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}  # fmt: skip
INTERRUPTED = 130


@dataclass(frozen=True)
class Asked:
    """One request: its id in the recording, and whose prompt it is."""

    req_id: str
    prompt: Prompt


@dataclass(frozen=True)
class Phase:
    """One stretch of a drill: idle, idle again, or a regime. `regime`: None at idle."""

    name: str
    regime: Regime | None
    requests: tuple[Asked, ...]


@dataclass(frozen=True)
class Plan:
    """All that a drill will ask. concurrency: requests in flight under load; max_tokens: of one answer.

    dtype: of the weights; 'auto': as the model's folder says.
    """

    engine: str
    dtype: str
    concurrency: int
    max_tokens: int
    phases: tuple[Phase, ...]

    def budget(self) -> str:
        """Return what this will cost at most, in one sentence."""
        asked = sum(len(phase.requests) for phase in self.phases)
        parts = ", ".join(f"{phase.name} {len(phase.requests)}" for phase in self.phases)
        return f"{asked} requests of up to {self.max_tokens} tokens ({parts}): {asked * self.max_tokens} tokens at most"


@dataclass(frozen=True)
class Ended:
    """How the engine's processes ended. `interrupted`: by Ctrl-C; what was recorded until then stands."""

    interrupted: bool


def plan(
    prompts: Sequence[Prompt], regimes: Sequence[str], engine: str, concurrency: int, max_tokens: int, requests: int,
    dtype: str = "auto",
) -> Plan:  # fmt: skip
    """Return the phases: every prompt that is asked has its idle reference, twice. requests: of each regime.

    More requests than prompts: the prompts come round again, among other neighbours. Raises ForensicsError for a
    regime that the engine cannot have.
    """
    if engine in WITHOUT_POOL and (poolless := [name for name in regimes if REGIMES[name].kv_pool == "small"]):
        raise ForensicsError(
            f"--regime {poolless[0]}: static batches of transformers have no KV pool", USAGE,
            "take --engine transformers-continuous or vllm for it",
        )  # fmt: skip
    chosen = list(prompts[:requests])
    quiet = tuple(
        Phase(name, None, tuple(Asked(f"{name}.{one.name}", one) for one in chosen)) for name in (IDLE, AGAIN)
    )
    loaded = tuple(_loaded(REGIMES[name], chosen, requests, concurrency) for name in regimes)
    return Plan(engine, dtype, concurrency, max_tokens, quiet + loaded)


def _loaded(regime: Regime, prompts: list[Prompt], requests: int, concurrency: int) -> Phase:
    """Return the phase of a regime. A later round begins elsewhere, so that prompts meet other neighbours."""
    asked: list[Asked] = []
    order = regime.ordered(prompts, concurrency)
    for turn in range(-(-requests // len(prompts))):
        shift = turn * 3 % len(prompts)
        suffix = f".{turn + 1}" if turn else ""
        asked += [Asked(f"{regime.name}.{one.name}{suffix}", one) for one in order[shift:] + order[:shift]]
    return Phase(regime.name, regime, tuple(asked[:requests]))


def refuse_recording(out: Path) -> None:
    """Refuse a folder that already holds a recording: figures of two drills must not mix."""
    if holds_recording(out):
        raise ForensicsError(f"{out}: already holds a recording", USAGE, "choose another -o, or remove that folder")


def holds_recording(out: Path) -> bool:
    """Return whether a recording is in a folder."""
    return out.is_dir() and any(is_recording(path) for path in out.iterdir())


def check_model(model: Path) -> None:
    """Refuse what is no model folder before any engine starts."""
    if not (model / "config.json").is_file():
        raise ForensicsError(f"{model}: holds no config.json", BAD_INPUT, "MODEL is the folder of a model")


def run(drill: Plan, model: Path, python: str, out: Path, minutes: float | None, say: Callable[[str], None]) -> Ended:
    """Run every phase under the recorder into `out`. Raises ForensicsError when the engine cannot do it."""
    variables = QUIET | interpreter.activated(
        path := interpreter.find(python), environment(out, Settings(ids=True, logits_sha256=True, replica="drill"))
    )
    facts = interpreter.probe(path, variables)
    needed = drill.engine.partition("-")[0]
    if needed not in facts["engines"]:
        raise ForensicsError(f"{path}: has no {needed}", USAGE, "name an interpreter that has it with --python")
    say(interpreter.sentence(path, facts))
    prepare(out)
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    lives = _lives(drill)
    for number, phases in enumerate(lives):
        share = _cost(drill, phases) / (sum(_cost(drill, later) for later in lives[number:]) or 1.0)
        seconds = None if deadline is None else max(0.0, deadline - time.monotonic()) * share
        code = _live(drill, phases, model, [str(path), "-m", PROGRAM, MODULE[drill.engine]], out, variables, seconds)
        if code == INTERRUPTED:
            return Ended(interrupted=True)
        if code:
            raise ForensicsError(
                f"the engine ended with exit code {code} (its message is above)",
                code if code in (USAGE, BAD_INPUT) else INCONCLUSIVE,
                f"what was recorded before that is in {out}" if holds_recording(out) else "",
            )
    return Ended(interrupted=False)


def _lives(drill: Plan) -> list[list[Phase]]:
    """Return which phases share a process: a vLLM engine has one KV pool and one limit of rows for its whole life."""
    if drill.engine != "vllm":
        return [list(drill.phases)]
    lives: dict[tuple[str, str], list[Phase]] = {}
    for phase in drill.phases:
        key = (phase.regime.kv_pool, phase.regime.isolation) if phase.regime else ("ample", "shared")
        lives.setdefault(key, []).append(phase)
    return list(lives.values())


def _cost(drill: Plan, phases: list[Phase]) -> float:
    """Return how long phases can take, in requests one after the other; see replay/workload.py."""
    rows = [drill.concurrency if one.regime and one.regime.isolation == "shared" else 1 for one in phases]
    return sum(len(phase.requests) / count for phase, count in zip(phases, rows, strict=True))


def _live(
    drill: Plan, phases: list[Phase], model: Path, command: list[str], out: Path, variables: dict[str, str],
    seconds: float | None,
) -> int:  # fmt: skip
    """Run some phases in one process; return its exit code."""
    with tempfile.TemporaryDirectory() as folder:
        workload = Path(folder) / "workload.json"
        workload.write_text(json.dumps(_workload(drill, phases, model, seconds)), encoding="utf-8")
        return record([*command, str(workload)], out, variables).exit_code


def _workload(drill: Plan, phases: list[Phase], model: Path, seconds: float | None) -> dict[str, Any]:
    """Return what the engine's process is told: see replay/engines/workload.py."""
    asked = {one.prompt.name: one.prompt.text for phase in drill.phases for one in phase.requests}
    return {
        "model": str(model),
        "engine": drill.engine,
        "dtype": drill.dtype,
        "max_tokens": drill.max_tokens,
        "concurrency": drill.concurrency,
        "seconds": seconds,
        "prompts": asked,
        "phases": [
            {
                "name": phase.name,
                "in_flight": drill.concurrency if phase.regime else 1,
                "kv_pool": phase.regime.kv_pool if phase.regime else "ample",
                "one_at_a_time": phase.regime is not None and phase.regime.isolation == "strict",
                "requests": [[one.req_id, one.prompt.name] for one in phase.requests],
            }
            for phase in phases
        ],
    }
