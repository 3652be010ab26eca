"""Request records without a run, bound to the engine's requests that they speak of.

A gateway or an API process knows what was asked and what became of it on its way, but not the engine's run. What it
writes is a *part*: it belongs to every request of an engine that has one of its ids, on the replica that it states,
if it states one. A client that tries again under one id asked the same thing again, so its part belongs to every try.
A part that states two ids, of which the first is an engine's own, speaks of that request alone. A record without run
that has steps of its own is no part but a request, and one that matches nothing stays a request, too.

Rows stay as they were written (`stated_request`). Readers ask the view `request`: in it a bound part is no request of
its own, and a request says what its parts add. What the engine states stays; in what parts contradict each other the
request says nothing; both are named in the column `contradicted`. Times differ by observer and never contradict, and
fields that the contract does not know are each writer's own.
Digests follow from the whole. All of it is computed anew from the rows, so order does not matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from forensics.contract import ENVELOPE, OWN_COLUMNS, kinds
from forensics.digest import DERIVED, HASHED_IDS, derive

if TYPE_CHECKING:
    from forensics.store import Store

IDENTITY: Final = ("run_id", "replica_id", "req_id")
DIGESTED: Final = (
    "effective_token_ids_sha256", "decode_cfg_applied", "raw_prompt_sha256", "decode_cfg_requested",
)  # fmt: skip
DIGESTS_AT_ONCE: Final = 200_000
DONE: Final = {"name": "bound", "value": "yes"}

PAIRS: Final = """
INSERT INTO binding
WITH part AS (
  SELECT replica_id, req_id, external_req_id FROM stated_request p
  WHERE run_id = '' AND NOT EXISTS (
    SELECT 1 FROM step s WHERE s.run_id = '' AND s.replica_id = p.replica_id AND s.req_id = p.req_id)
),
part_name AS (
  SELECT replica_id, req_id, external_req_id, req_id AS name FROM part
  UNION SELECT replica_id, req_id, external_req_id, external_req_id FROM part WHERE external_req_id IS NOT NULL
),
request_name AS (
  SELECT run_id, replica_id, req_id, req_id AS name FROM stated_request WHERE run_id <> ''
  UNION SELECT run_id, replica_id, req_id, external_req_id FROM stated_request
  WHERE run_id <> '' AND external_req_id IS NOT NULL
),
pair AS (
  SELECT DISTINCT r.run_id, r.replica_id, r.req_id, p.replica_id AS part_replica_id, p.req_id AS part_req_id,
         p.external_req_id IS NOT NULL AND r.req_id = p.req_id AS exact
  FROM part_name p JOIN request_name r USING (name)
  WHERE p.replica_id IN ('', r.replica_id)
)
SELECT run_id, replica_id, req_id, part_replica_id, part_req_id FROM pair
QUALIFY exact OR NOT bool_or(exact) OVER (PARTITION BY part_replica_id, part_req_id)
"""
SAID: Final = """
FROM binding b
JOIN stated_request p ON p.run_id = '' AND p.replica_id = b.part_replica_id AND p.req_id = b.part_req_id
JOIN stated_request r ON r.run_id = b.run_id AND r.replica_id = b.replica_id AND r.req_id = b.req_id
GROUP BY b.run_id, b.replica_id, b.req_id
"""


def ddl() -> tuple[str, ...]:
    """Return the statements that create the two tables of bindings, and the view of whole requests."""
    columns = kinds()["request"].columns()
    bound = ", ".join(f'"{name}" {columns[name]}' for name in (*IDENTITY, *_bound(), *DERIVED))
    shown = ", ".join(
        f'coalesce(r."{name}", b."{name}") AS "{name}"' if name in (*_bound(), *DERIVED) else f'r."{name}"'
        for name in columns
    )
    return (
        "CREATE TABLE binding (run_id VARCHAR, replica_id VARCHAR, req_id VARCHAR, "
        "part_replica_id VARCHAR, part_req_id VARCHAR)",
        f"CREATE TABLE bound ({bound}, contradicted VARCHAR[])",
        f"CREATE VIEW request AS SELECT {shown}, coalesce(b.contradicted, []) AS contradicted "  # noqa: S608
        "FROM stated_request r LEFT JOIN bound b USING (run_id, replica_id, req_id) "
        "WHERE r.run_id <> '' OR NOT EXISTS (SELECT 1 FROM binding p "
        "WHERE p.part_replica_id = r.replica_id AND p.part_req_id = r.req_id)",
    )


def unbind(store: Store) -> None:
    """Note that rows have changed since parts were bound; inside the transaction that changes them."""
    store.run("DELETE FROM meta WHERE name = 'bound'")


def bind(store: Store) -> None:
    """Bind every part that is on file, anew if anything has changed. A set-based query, whatever their number."""
    with store.transaction():
        if store.run("SELECT 1 FROM meta WHERE name = 'bound'"):
            return
        store.run("DELETE FROM binding")
        store.run("DELETE FROM bound")
        store.run(PAIRS)
        store.run(_said())
        while rows := store.ask("undigested", limit=DIGESTS_AT_ONCE).to_dicts():
            store.insert("digest", [_digested(row) for row in rows])
            store.run(DIGEST)
            store.run("DELETE FROM digest")
        store.insert("meta", [DONE])


DIGEST: Final = f"""
UPDATE bound SET input_sha256 = w.input_sha256, asked_sha256 = w.asked_sha256
FROM (
  SELECT r.run_id, r.replica_id, r.req_id, d.input_sha256, d.asked_sha256
  FROM request r JOIN digest d ON {" AND ".join(f"r.{name} IS NOT DISTINCT FROM d.{name}" for name in DIGESTED)}
) w
WHERE bound.run_id = w.run_id AND bound.replica_id = w.replica_id AND bound.req_id = w.req_id
"""  # noqa: S608 - names of ours


def _digested(row: dict[str, Any]) -> dict[str, Any]:
    whole = {name: value for name, value in row.items() if value is not None}
    derive(whole)
    return whole


def _bound() -> tuple[str, ...]:
    """Return the columns that a part may fill: what it says, not what it is called or how it was written."""
    own = {*IDENTITY, *ENVELOPE, *DERIVED, *OWN_COLUMNS} - {"extra"}
    return tuple(name for name in kinds()["request"].columns() if name not in own)


def _said() -> str:
    """Return the statement that writes down what the parts of each request say together."""
    times = kinds()["request"].times
    apart = {name: f'min(p."{name}") <> max(p."{name}")' for name in _bound()}
    against = {name: f'min(p."{name}") <> any_value(r."{name}")' for name in _bound()}
    values = [
        f"CASE WHEN {' OR '.join(f'coalesce({one}, false)' for one in _faults(name, apart, against))} THEN NULL "
        f'ELSE min(p."{name}") END AS "{name}"'
        for name in _bound()
    ]
    said = ", ".join(
        f"CASE WHEN {apart[name]} OR {against[name]} THEN '{name}' END"
        for name in _bound()
        if name not in (*times, "external_req_id", "extra")
    )
    return (
        f"INSERT INTO bound BY NAME SELECT b.run_id, b.replica_id, b.req_id, {', '.join(values)}, "
        f"list_filter([{said}], lambda name: name IS NOT NULL) AS contradicted {SAID}"
    )


def _faults(name: str, apart: dict[str, str], against: dict[str, str]) -> list[str]:
    """Return when a value of parts does not count: they disagree, or its hash is not the one that stands."""
    digest = HASHED_IDS.get(name)
    return [apart[name]] + ([apart[digest], against[digest]] if digest else [])
