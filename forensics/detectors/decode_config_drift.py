"""The two runs decoded under different output-affecting configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.findings import ADMISSION, Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.WORKLOAD
SEEN = "real engine"
INERT = (
    "stream", "stream_options", "user", "metadata", "request_id", "priority", "logprobs", "top_logprobs",
    "prompt_logprobs", "echo", "detokenize", "skip_special_tokens", "spaces_between_special_tokens",
)  # fmt: skip
"""Settings that change what is returned, and no token."""
GREEDY_INERT = ("top_p", "top_k", "min_p", "typical_p", "seed")
"""Settings that change no token at temperature 0 in both arms."""
CUT = (
    "max_tokens", "max_new_tokens", "max_completion_tokens", "max_length", "stop", "stop_strings", "stop_token_ids",
    "include_stop_str_in_output",
)  # fmt: skip
"""Settings that can only end an output: of two outputs they explain none that part while both go on."""
ABSENT = object()


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare the applied configuration key by key, and say of each key in which shade it drifted.

    Shades, where `decode_cfg_requested` is on record: asked for differently; asked for alike and changed by the server
    of one arm (limits under load, policy); asked for by nobody, a default. Keys that cannot have changed the token at
    the flip do not count. How the token is chosen from the logits is `tie_rule_change`. Competitors of it as a cause
    of the token: `logit_drift`, `tie_rule_change`.
    """
    target, reference = incident.arms()
    if None in (target.request["decode_cfg_applied"], reference.request["decode_cfg_applied"]):
        yield Gap("decode_config_drift", "decode_cfg_applied", "whether both runs decoded under the same configuration")
        return
    ours, theirs = target.decode_cfg(), reference.decode_cfg()
    inert = INERT + (GREEDY_INERT if ours.get("temperature") == theirs.get("temperature") == 0 else ())
    changed = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k) and k not in inert)
    if changed and all(key in CUT for key in changed):
        flip = incident.flip
        if flip is None:
            missing = "step.token_id or step.token_tag"
            yield Gap("decode_config_drift", missing, f"whether the outputs part before {', '.join(changed)} ends one")
            return
        if "(stopped)" not in (flip.target_token, flip.reference_token):
            return
    if not changed:
        return
    asked = [
        None if arm.request["decode_cfg_requested"] is None else arm.decode_cfg("decode_cfg_requested")
        for arm in (target, reference)
    ]
    shades: dict[str, list[str]] = {}
    for key in changed:
        said = f"{key} {ours.get(key)!r} against {theirs.get(key)!r}"
        shades.setdefault(_shade(key, ours, theirs, asked), []).append(said)
    listed = "; ".join(f"{', '.join(keys)} ({shade})" for shade, keys in shades.items())
    gates = [arm.request["policy_gates"] for arm in (target, reference)]
    policy = "; other policy gates applied" if gates[0] != gates[1] else ""
    yield Finding(
        "decode_config_drift", RUNG, f"decode configuration differs: {listed}{policy}", ADMISSION,
        {key: ours.get(key) for key in changed}, {key: theirs.get(key) for key in changed},
        citations=target.cite() + reference.cite(),
    )  # fmt: skip


def _shade(key: str, ours: dict[str, Any], theirs: dict[str, Any], asked: list[dict[str, Any] | None]) -> str:
    if asked[0] is None or asked[1] is None:
        return "what was asked for is not on record"
    wanted = [configuration.get(key, ABSENT) for configuration in asked if configuration is not None]
    if wanted[0] != wanted[1]:
        return "asked for differently"
    if wanted[0] is ABSENT:
        return "nobody asked for it: a default of the server"
    changed = [name for name, applied in (("target", ours), ("reference", theirs)) if applied.get(key) != wanted[0]]
    return f"both asked for {wanted[0]!r}; changed by the server of the {' and of the '.join(changed)}"
