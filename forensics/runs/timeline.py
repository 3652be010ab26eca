"""A run over time: its regimes and what pushed them, its load, its tactics against how it began, where it changed."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import polars as pl

from forensics.change_point import ALPHA, NEAR, shifts
from forensics.feedback import loops
from forensics.findings import Gap
from forensics.freedom import LEAST, TOGETHER, freedoms
from forensics.regimes import SEVERITY
from forensics.timeline import spans, transitions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.completeness import Loss
    from forensics.feedback import Loop
    from forensics.runs.run import Run
    from forensics.store import Store

FORMAT = "forensics.timeline/1"
BASELINE = 0.25
"""Share of the launches, from the first on, that the tactics of later ones are held against. A choice."""
MOST_LAUNCHES = 20_000
"""Launches up to which change points are looked for launch by launch; of a longer run, every second, third, …"""


@dataclass(frozen=True)
class RegimeSpan:
    """A maximal run of launches in one regime, that of the worst rank. Engine steps, both included; Unix seconds."""

    state: str
    first_step: int
    last_step: int
    launches: int
    begins: float | None


@dataclass(frozen=True)
class Turn:
    """A change of regime: at which engine step and time, from what to what, and which inputs moved."""

    engine_step: int
    ts: float | None
    before: str
    after: str
    why: str


@dataclass(frozen=True)
class Window:
    """Some launches in a row. regime: the worst of them. None: not on record.

    churn: half the sum of the differences of all shares of tactics from the baseline (total variation distance, 0 to
    1). moved: the tactic whose share changed most, before and now. lost: records known to be missing that may belong
    here.
    """

    first_step: int
    last_step: int
    begins: float | None
    launches: int
    regime: str
    rows: int | None
    launch_tokens: int | None
    waiting: int | None
    step_ms: float | None
    preempted: int | None
    recomputed_tokens: int | None
    paging: int | None
    lost: int
    churn: float | None
    moved: tuple[str, float, float] | None


@dataclass(frozen=True)
class Change:
    """A change point. what: each degree of freedom that moved there, in words; collapse: several, for the worse."""

    engine_step: int
    ts: float | None
    what: tuple[str, ...]
    p: float
    collapse: bool


@dataclass(frozen=True)
class RunTimeline:
    """All of it. tactics_told_by: 'algorithm', or 'shape class' where no algorithm is on record."""

    run_id: str
    replica_id: str
    engine: str
    begins: float | None
    ends: float | None
    launches: int
    missing_steps: int
    spans: tuple[RegimeSpan, ...]
    transitions: tuple[Turn, ...]
    windows: tuple[Window, ...]
    tactics_told_by: str
    changes: tuple[Change, ...]
    loops: tuple[Loop, ...]
    losses: tuple[Loss, ...]
    gaps: tuple[Gap, ...]
    format: str = FORMAT

    def document(self) -> dict[str, Any]:
        """Return it for `--format json`."""
        return asdict(self)


def timeline(store: Store, run: Run, windows: int) -> RunTimeline:
    """Tell a run over time, in at most so many windows of equal numbers of launches."""
    frame, engine = run.launches, run.engine
    steps, times = frame["engine_step"].to_list(), frame["ts"].to_list()
    states = spans(frame["regime"])
    known = [one for one in times if one is not None]
    named = (engine.get("engine"), engine.get("engine_version"), (engine.get("model_id") or "").rsplit("/")[-1])
    return RunTimeline(
        run_id=run.identity[0], replica_id=run.identity[1],
        engine=" ".join(str(part) for part in named if part) or "engine not on record",
        begins=min(known, default=None), ends=max(known, default=None), launches=frame.height,
        missing_steps=steps[-1] - steps[0] + 1 - len(steps) if steps else 0,
        spans=tuple(
            RegimeSpan(one.state, steps[one.first], steps[one.last], one.steps, times[one.first]) for one in states
        ),
        transitions=tuple(_turns(frame)),
        windows=tuple(_windows(run, windows)),
        tactics_told_by=run.told_by,
        changes=tuple(_changes(frame)),
        loops=tuple(loops(store, *run.identity)),
        losses=run.losses,
        gaps=tuple(_gaps(run)),
    )  # fmt: skip


def _turns(frame: pl.DataFrame) -> Iterator[Turn]:
    times = dict(frame.select("engine_step", "ts").iter_rows())
    for one in transitions(frame.with_columns(step="engine_step")):
        yield Turn(one.step, times[one.step], one.before, one.after, one.why)


def _windows(run: Run, count: int) -> Iterator[Window]:
    frame = run.launches
    height = -(-frame.height // max(count, 1))
    baseline = _mix(run, frame.head(max(round(BASELINE * frame.height), 1)))
    for start in range(0, frame.height, max(height, 1)):
        yield _window(run, frame.slice(start, height), baseline)


def _window(run: Run, part: pl.DataFrame, baseline: Counter[str]) -> Window:
    first, last = part["engine_step"][0], part["engine_step"][-1]
    here = _mix(run, part)
    paging = part["paging_on"].drop_nulls()
    return Window(
        first_step=first, last_step=last, begins=part["ts"].min(), launches=part.height,  # type: ignore[arg-type]
        regime=min(part["regime"].fill_null("unknown"), key=_severity),
        rows=_most(part, "batch_size"), launch_tokens=_most(part, "batch_tokens"), waiting=_most(part, "queue_depth"),
        step_ms=median(part["step_ms"].drop_nulls().to_list() or [float("nan")]) if part["step_ms"].count() else None,
        preempted=_sum(part, "num_preempted"), recomputed_tokens=_sum(part, "recomputed_tokens"),
        paging=int(paging.sum()) if len(paging) else None,
        lost=sum(loss.records for loss in run.losses if loss.touches(first, last)),
        churn=_distance(baseline, here), moved=_moved(baseline, here),
    )  # fmt: skip


def _severity(state: str) -> int:
    return SEVERITY.index(state) if state in SEVERITY else len(SEVERITY) - 1


def _most(part: pl.DataFrame, name: str) -> int | None:
    return part[name].max()  # type: ignore[return-value]


def _sum(part: pl.DataFrame, name: str) -> int | None:
    return int(part[name].sum()) if part[name].count() else None


def _mix(run: Run, part: pl.DataFrame) -> Counter[str]:
    """Return {tactic: launches} of some launches."""
    ran = run.tactics.filter(pl.col("engine_step").is_in(part["engine_step"].to_list()))
    mix: Counter[str] = Counter()
    for tactic, launches in ran.select("tactic", "launches").iter_rows():
        mix[tactic] += launches
    return mix


def _shares(before: Counter[str], now: Counter[str]) -> dict[str, tuple[float, float]]:
    return {
        name: (before[name] / before.total(), now[name] / now.total()) for name in {**before, **now}
    } if before and now else {}  # fmt: skip


def _distance(before: Counter[str], now: Counter[str]) -> float | None:
    shares = _shares(before, now)
    return sum(abs(one - other) for one, other in shares.values()) / 2 if shares else None


def _moved(before: Counter[str], now: Counter[str]) -> tuple[str, float, float] | None:
    shares = _shares(before, now)
    name = max(sorted(shares), key=lambda one: abs(shares[one][1] - shares[one][0]), default=None)
    return None if name is None or shares[name][0] == shares[name][1] else (name, *shares[name])


def _changes(frame: pl.DataFrame) -> Iterator[Change]:
    """Yield the change points of all degrees of freedom; those that lie together are one."""
    every = -(-frame.height // MOST_LAUNCHES)
    seen = frame.gather_every(every) if every > 1 else frame
    moved = sorted(
        (one.at, one.p, one.after - one.before, freedom.told(one.before, one.after))
        for freedom in freedoms(seen) if freedom.known
        for one in shifts(freedom.series(), LEAST)
    )  # fmt: skip
    groups: list[list[tuple[int, float, float, str]]] = []
    for one in moved:
        if groups and one[0] - groups[-1][0][0] <= NEAR * seen.height:
            groups[-1].append(one)
        else:
            groups.append([one])
    for group in groups:
        row = seen.row(group[0][0], named=True)
        worse = sorted(p for _, p, size, _ in group if size > 0)
        joint = (len(freedoms(seen.head(0))) - TOGETHER + 1) * worse[TOGETHER - 1] if len(worse) >= TOGETHER else 1.0
        yield Change(
            row["engine_step"], row["ts"], tuple(told for *_, told in group), max(p for _, p, _, _ in group),
            collapse=joint <= ALPHA,
        )  # fmt: skip


def _gaps(run: Run) -> Iterator[Gap]:
    frame = run.launches
    if run.told_by != "algorithm":
        yield Gap("algorithm_change", "batch.algo_id or kernel records", "which algorithms ran: shape classes stand in")
    for freedom in freedoms(frame):
        if not freedom.known and freedom.name != "tactic":
            yield Gap("state_collapse", freedom.fields, f"whether the {freedom.name} changed")
    for name, what in (("regime", "which regime ran"), ("num_preempted", "who was preempted")):
        blank = frame[name] == "unknown" if name == "regime" else frame[name].is_null()
        if blank.any():
            inputs = "vram_free_mb or headroom_mb, paging_on, isolation, queue_ms" if name == "regime" else name
            yield Gap("timeline", f"batch.{inputs}", f"{what} in {int(blank.sum())} of {frame.height} launches")
