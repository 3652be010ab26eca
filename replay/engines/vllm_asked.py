"""What a client asked of vLLM's OpenAI API, as contract fields. Pure functions over the body of one HTTP request.

No text leaves this module: prompts, messages, schemas and members that we do not know become hashes. The body is
the client's own JSON, not vLLM's view of it: defaults and normalisation are what the two are compared for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replay.canonical import canonical_sha256, raw_prompt_sha256
from replay.engines.vllm_records import ALWAYS_APPLIED, APPLIED_WHEN_SET

NAMES = {"max_completion_tokens": "max_tokens", "vllm_xargs": "extra_args"}
"""Members of the body that decode_cfg_applied calls otherwise."""
IN_CLEAR = {*ALWAYS_APPLIED, *APPLIED_WHEN_SET, "seed", "n"}
"""Members of which the value is written: those whose applied value is written too."""
SHAPING = ("truncate_prompt_tokens", "truncation_side")
"""Members that say what to do to the prompt, often put in by a gateway: no part of what was asked."""
NO_CONFIGURATION = {
    "model", "messages", "prompt", "tools", "stream", "stream_options", "user", "metadata", "store", "request_id",
    "session_id", "priority", "cache_salt", "logprobs", "top_logprobs", "prompt_logprobs", "echo", "return_token_ids",
    "return_tokens_as_token_ids", "safety_identifier", "prompt_cache_key",
}  # fmt: skip
"""Members that are the prompt itself, or that change how an answer is carried and not which tokens it has."""
TENANT_HEADERS = ("x-tenant-id", "openai-organization")


def prompts(body: Mapping[str, Any]) -> list[Any]:
    """Return the prompts of one body, in order: a completion may carry several, each a text or a list of token ids.

    A chat is one prompt: its messages, or {messages, tools} where tools are declared.
    """
    if "messages" in body:
        tools = body.get("tools")
        return [{"messages": body["messages"], "tools": tools} if tools else body["messages"]]
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        return prompt
    return [prompt]


def requested_config(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decode configuration that the client asked for, by the names of decode_cfg_applied.

    Members left out or null are left out. A member that no list here knows may hold text: its hash stands for it.
    """
    asked: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in NO_CONFIGURATION or name in SHAPING:
            continue
        known = NAMES.get(name, name)
        if known == "stop":
            asked[known] = [value] if isinstance(value, str) else value
        elif known in IN_CLEAR:
            asked[known] = value
        else:
            asked[known] = value if isinstance(value, bool | int | float) else f"sha256:{canonical_sha256(value)}"
    return asked


def body_fields(body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the request fields that follow from the body and the headers, whichever of its prompts is meant.

    `tenant` is still the name: only the recorder has the key under which it becomes tenant_sha256.
    """
    tenant = next((headers[name] for name in TENANT_HEADERS if headers.get(name)), None)
    system = [one.get("content") for one in _messages(body) if one.get("role") in ("system", "developer")]
    tools = body.get("tools")
    shaping = [{"what": name, "value": body[name]} for name in SHAPING if body.get(name) is not None]
    return {
        "served_model_name": body.get("model"),
        "decode_cfg_requested": requested_config(body),
        "shaping_events": shaping or None,
        "tool_schemas_sha256": canonical_sha256(tools) if tools else None,
        "system_message_sha256": raw_prompt_sha256(system[0] if len(system) == 1 else system) if system else None,
        "tenant": tenant,
    }


def _messages(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages = body.get("messages")
    return [one for one in messages if isinstance(one, Mapping)] if isinstance(messages, list) else []


def truncation_fields(before: int | None, kept: int, limit: int | None, asked: int | None, side: str) -> dict[str, Any]:
    """Return what a cut did to the prompt.

    before: its tokens before the cut, None if nobody counted. kept: those the model saw. limit: what it was to be
    cut to, None if no cut was asked for. asked: the client's truncate_prompt_tokens, of which -1 means whatever the
    context takes. side: the side that is cut off.
    """
    if limit is None:
        return {"tokens_before_truncation": kept, "truncated": False}
    if before is None:
        return {"truncated": False if kept < limit else None}
    if before <= kept:
        return {"tokens_before_truncation": before, "truncated": False}
    return {
        "tokens_before_truncation": before,
        "truncated": True,
        "trunc_reason": "context_limit" if asked is not None and asked < 0 else "truncate_prompt_tokens",
        "trunc_side": side,
        "trunc_boundary": before - kept if side == "left" else kept,
    }
