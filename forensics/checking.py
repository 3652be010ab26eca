"""A graded report on a log, for the author of a recorder: what is right, what is missing, what that stops, what next.

Reads a store that was filled from the log and nothing else (`forensics ingest --check`).
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from forensics.completeness import in_a_line, runs_in_files
from forensics.contract import kind_of, kinds
from forensics.coverage import FIELDS
from forensics.values import Rejected, parse

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from forensics.load import FileSummary
    from forensics.store import Store

ENOUGH: Final = 0.95
"""Share of rows from which on a field is there: requests that were cut off never get all of theirs."""
CALENDAR: Final = 1e9
"""Unix seconds, in the year 2001: below it stands a monotonic clock, or a time counted from the start."""
GRADES: Final[dict[str, tuple[str, ...]]] = {
    "identity and order": ("record.run_id", "record.replica_id", "record.seq", "step.engine_step"),
    "the same input is found": (
        "request.effective_token_ids_sha256", "request.decode_cfg_applied", "engine.weights_sha256|model_id",
    ),
    "outputs can be compared": ("request.output_token_ids_sha256",),
    "the flip can be located": ("token.token_id|token_tag",),
    "margin": ("token.top_logits", "token.logit_dtype"),
    "plan": ("batch.batch_tokens", "step.num_computed_tokens", "batch.graph_mode", "batch.padded_tokens"),
    "regimes": ("batch.headroom_mb|vram_free_mb", "batch.paging_on", "batch.isolation_mode", "step.queue_ms"),
    "what was asked": ("request.raw_prompt_sha256", "request.decode_cfg_requested"),
    "replay": ("request.effective_token_ids", "engine.versions", "engine.config"),
}  # fmt: skip
"""Question → what answers it, as kind.field or alternatives. `token`: steps that chose a token; `record`: any line."""


@dataclass(frozen=True)
class Grade:
    """How well a log answers one question: pass, partial or missing; why; the one thing to do next."""

    name: str
    grade: str
    why: str
    next: str


@dataclass(frozen=True)
class Report:
    """All of the check; each list holds dictionaries of one form. usable: rows were taken, none broke the contract."""

    files: list[dict[str, Any]]
    kinds: list[dict[str, Any]]
    rejected: list[dict[str, Any]]
    grades: list[dict[str, Any]]
    absent: list[dict[str, Any]]
    warnings: list[str]
    usable: bool


def report(store: Store, summaries: Sequence[FileSummary]) -> Report:
    """Return the report on a store that `summaries` filled."""
    shares = _shares(store)
    rejected = [_rejection(row) for row in store.ask("rejected").to_dicts()]
    files = ("path", "format", "read", "stored", "merged", "duplicates", "quarantined", "skipped")
    counts = dict(store.ask("counts").iter_rows())
    aside = sum(one["rows"] for one in rejected)
    return Report(
        files=[{name: getattr(one, name) for name in files} for one in summaries],
        kinds=[
            {"kind": kind, "records": rows, "rejected": sum(one["rows"] for one in rejected if one["kind"] == kind)}
            for kind, rows in counts.items()
        ],
        rejected=rejected,
        grades=[vars(one) for one in (*(_grade(name, needs, shares) for name, needs in GRADES.items()), *_whole(store))]
        if any(counts.values())
        else [],
        absent=[
            {"field": f"{kind}.{name}", "share": f"{share:.0%}", "stops": stops}
            for kind, name, stops in FIELDS
            if any(counts.values()) and (share := _share(shares, _key(kind, name))) < ENOUGH
        ],
        warnings=_warnings(store, summaries, shares),
        usable=sum(counts.values()) > 0 and not aside and not any(one.named and one.skipped for one in summaries),
    )


def _shares(store: Store) -> dict[str, float]:
    """Return {kind.field: share of the rows of the kind that have it}; a flat step stands in for a missing batch."""
    shares: dict[str, float] = {}
    for kind in ("engine", "request", "step", "batch"):
        filled = store.filled(kind)
        flat = kind == "batch" and not filled["content_hash"]
        values = store.filled("step") if flat else filled
        rows = values["content_hash"]
        shares |= {f"{kind}.{name}": values.get(name, 0) / rows if rows else 0.0 for name in kinds()[kind].fields}
        if kind == "step" and (requests := store.filled("request")["content_hash"]):
            shares["step.queue_ms"] = min(1.0, filled["queue_ms"] / requests)  # written in the first step only
    shares["batch.isolation_mode"] = max(shares["batch.isolation_mode"], shares["engine.isolation"])
    observed = [json.loads(claim or "{}").get("step") or [] for claim in store.ask("observed")["observes"]]
    if observed and all("resumed" in names for names in observed):
        shares["step.resumed"] = 1.0  # written only where it happened: absent means no
    for row in store.ask("shares").to_dicts():
        shares |= {f"record.{name}": row[name] or 0.0 for name in ("run_id", "replica_id", "seq")}
        tokens = ("token_id", "token_tag", "top_logits", "logit_dtype")
        shares |= {f"token.{name}": row[name] / row["rows"] if row["rows"] else 0.0 for name in tokens}
    return shares


def _key(kind: str, name: str) -> str:
    token = kind == "step" and name.startswith(("token_", "top_logits", "logit_dtype"))
    return f"{'token' if token else kind}.{name}"


def _share(shares: dict[str, float], need: str) -> float:
    """Return the best share among the alternatives of a need."""
    kind, _, names = need.partition(".")
    return max(shares.get(f"{kind}.{name}", 0.0) for name in names.split("|"))


def _grade(name: str, needs: Iterable[str], shares: dict[str, float]) -> Grade:
    lacking = {need: share for need in needs if (share := _share(shares, need)) < ENOUGH}
    if not lacking:
        return Grade(name, "pass", "", "")
    worst = min(lacking, key=lambda need: lacking[need])
    why = ", ".join(f"{_shown(need)} in {share:.0%}" for need, share in lacking.items())
    present = any(_share(shares, need) > 0 for need in needs)
    return Grade(name, "partial" if present else "missing", why, f"write {_shown(worst)}")


def _shown(need: str) -> str:
    """Return a need in the words of the contract."""
    kind, _, names = need.partition(".")
    where = {"token": "step.", "record": "on every line "}.get(kind, f"{kind}.")
    return where + names.replace("|", " or ")


def _whole(store: Store) -> Iterable[Grade]:
    """Grade what is about the stream and not about fields: completeness, and the relation of its clocks."""
    runs = [one for one in runs_in_files(store) if one.run]
    said = in_a_line(runs)
    if not runs or any(one.missing is None for one in runs):
        yield Grade("completeness", "missing", "records without writer and seq", "number every line: writer and seq")
    elif said:
        yield Grade("completeness", "partial", said, "`forensics sources` shows in which file and run")
    elif not all(any(other.shut_down for other in runs if other.run == one.run) for one in runs if one.run):
        yield Grade("completeness", "partial", "no end is on record", "write event what=shutdown as the last line")
    else:
        yield Grade("completeness", "pass", "", "")
    clocks = {one.clock for one in runs}
    if clocks == {"related to wall time"}:
        yield Grade("clocks", "pass", "", "")
    elif clocks <= {"not stated"}:
        yield Grade("clocks", "missing", "no clock_id on any line", "write clock_id and mono_ns on every line")
    else:
        yield Grade("clocks", "partial", "a clock_id that engine.clock does not relate", "write engine.clock")


def _warnings(store: Store, summaries: Sequence[FileSummary], shares: dict[str, float]) -> list[str]:
    """Return what is allowed and most likely a mistake."""
    known = sorted({name for kind in kinds().values() for name in kind.fields} | {"kind"})
    unknown = sorted({name for one in summaries for name in one.unknown_fields})
    said = []
    for name in unknown:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
        said.append(f"{name} is no field of the contract{f': did you mean {near[0]}?' if near else '; it is kept'}")
    if _share(shares, "token.token_tag") and _share(shares, "engine.token_tag_key_id") < 1:
        said.append("token_tag without engine.token_tag_key_id: tags of two recordings cannot be compared")
    for row in store.ask("shares").to_dicts():
        if row["first_ts"] is not None and row["first_ts"] < CALENDAR:
            said.append(f"ts begins at {row['first_ts']:g}: Unix seconds are meant; is this a monotonic clock?")
    return said


def _rejection(row: dict[str, Any]) -> dict[str, Any]:
    try:
        record = parse(row["bytes"])
        kind = kind_of(record)
    except Rejected:
        kind = "?"
    return {"kind": kind, "rows": row["rows"], "reason": row["reason"], "first": f"{row['source_path']}:{row['line']}"}
