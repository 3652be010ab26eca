"""The part of the vLLM recorder that lives in the API process: what was asked, before vLLM made x of it.

It joins two moments. The OpenAI handlers get the client's JSON and fix the external request id; the output
processor is told of each engine request, with the text after the template and the ids, just before it is sent to
the engine core. What comes of it is a part of the request record with the engine's own req_id. It names no run:
the API process does not know in which engine process, and so in which run, the request ends up.

Hashing and counting happen on a thread of their own. Requests that reach the engine on another way (offline,
responses, other dialects) have no such part.
"""

from __future__ import annotations

import copy
import functools
import importlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replay.canonical import raw_prompt_sha256, text_sha256
from replay.engines import vllm_asked
from replay.engines.vllm_worker import wrap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from replay.record import Gateway

HANDLERS = (
    ("vllm.entrypoints.openai.chat_completion.serving", "OpenAIServingChat", "create_chat_completion", "chatcmpl"),
    ("vllm.entrypoints.openai.completion.serving", "OpenAIServingCompletion", "create_completion", "cmpl"),
)
PENDING_LIMIT = 10_000
"""Bodies that wait for their engine request. One that never comes (a client that left) must not stay for ever."""


@dataclass
class Asked:
    """One HTTP request: the client's body and headers, vLLM's own view of it, and its handler."""

    body: Mapping[str, Any]
    headers: Mapping[str, str]
    request: Any
    handler: Any
    unsent: int = 1


class Listener:
    """Follows one engine client. `pending`: external request id → body, None where two carried one id at once."""

    def __init__(self, client: Any, recorder: Gateway) -> None:
        self.recorder = recorder
        self.pending: OrderedDict[str, Asked | None] = OrderedDict()
        self._renderer = client.renderer
        self._tokenizer: Any = None
        self._templates: dict[Any, str | None] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="forensics-api")
        for name in ("named", "asked", "answered", "engine_request", "stopped", "rejected", "_write"):
            setattr(self, name, recorder.guard(getattr(self, name)))

    def named(self, prefix: str, handler: Any, request: Any, raw_request: Any) -> str:
        """Return the external request id that a handler is about to give to a client's request."""
        return f"{prefix}-{handler._base_request_id(raw_request, request.request_id)}"

    def asked(self, external_id: str, one: Asked) -> None:
        """A handler is about to work on a client's request."""
        if not isinstance(one.body, dict) or one.body.get("use_beam_search"):
            return  # each beam is an engine request of its own, with an x that nobody asked for
        one.unsent = len(vllm_asked.prompts(one.body)) * int(one.body.get("n") or 1)
        self.pending[external_id] = None if external_id in self.pending else one
        while len(self.pending) > PENDING_LIMIT:
            self.pending.popitem(last=False)

    def answered(self, external_id: str) -> None:
        """A handler is done, or failed before it sent anything."""
        self.pending.pop(external_id, None)

    def engine_request(self, request: Any, text: Any = None, *_: Any, **__: Any) -> None:
        """An engine request is about to be sent: its ids are final."""
        external: str = request.external_req_id
        name, at = external, "0"
        if not external.startswith("chatcmpl-"):  # the prompts of a completion are numbered
            name, _dash, at = external.rpartition("-")
        one = self.pending.get(name)
        if one is None or request.resumable:
            return
        one.unsent -= 1
        if one.unsent <= 0:
            self.answered(name)
        ids = None if request.prompt_embeds is not None or request.mm_features else request.prompt_token_ids
        self._thread.submit(self._write, one, request.request_id, external, int(at), text, ids)

    def stopped(self, _: Any, result: Any, *__: Any, **___: Any) -> None:
        """Stop strings are found here, in the text; the engine core only hears of an abort."""
        for req_id in result.reqs_to_abort:
            self._part(req_id=req_id, stop_reason="stop_string")

    def rejected(self, reason: str) -> None:
        """Admission control turned a request away; it has no engine request."""
        self.recorder.write("event", what="admission_rejected", detail={"reason": reason})

    def _write(self, one: Asked, req_id: str, external: str, at: int, text: Any, ids: list[int] | None) -> None:
        prompt = vllm_asked.prompts(one.body)[at]
        fields = vllm_asked.body_fields(one.body, one.headers)
        if (tenant := fields.pop("tenant")) is not None:
            fields["tenant_sha256"] = self.recorder.key.tenant_sha256(tenant)
        if "messages" in one.body:
            fields["chat_template_sha256"] = self._template_sha256(one)
        self._part(
            req_id=req_id,
            external_req_id=external,
            raw_prompt_sha256=raw_prompt_sha256(prompt),
            effective_text_sha256=text_sha256(text) if isinstance(text, str) else None,
            **fields,
            **({} if ids is None else self._truncation(one, prompt, text, len(ids))),
        )

    def _part(self, **fields: Any) -> None:
        self.recorder.write("request", **fields)

    def _truncation(self, one: Asked, prompt: Any, text: Any, kept: int) -> dict[str, Any]:
        wanted = one.body.get("truncate_prompt_tokens")
        if wanted is None:
            return vllm_asked.truncation_fields(kept, kept, None, None, "right")
        params = one.request.build_tok_params(one.handler.model_config)
        limit = params.max_truncation_tokens if wanted < 0 else wanted
        side = params.truncation_side or self._renderer.tokenizer.truncation_side
        before: int | None = None
        if kept < limit:
            before = kept
        elif isinstance(prompt, list) and "prompt" in one.body:
            before = len(prompt)
        elif isinstance(text, str):
            before = self._count(text, special=params.add_special_tokens)
        return vllm_asked.truncation_fields(before, kept, limit, wanted, side)

    def _count(self, text: str, *, special: bool) -> int:
        """Count tokens with a tokenizer of our own: to switch truncation off in vLLM's would race with its threads."""
        if self._tokenizer is None:
            self._tokenizer = copy.deepcopy(self._renderer.tokenizer)
        return len(self._tokenizer.encode(text, add_special_tokens=special, truncation=False))

    def _template_sha256(self, one: Asked) -> str | None:
        from vllm.renderers.hf import resolve_chat_template

        given, tools = one.body.get("chat_template") or one.handler.chat_template, one.body.get("tools") or None
        if (key := (given, tools is None)) not in self._templates:
            model, tokenizer = one.handler.model_config, self._renderer.tokenizer
            template = resolve_chat_template(tokenizer, given, tools, model_config=model)
            self._templates[key] = None if template is None else text_sha256(template)
        return self._templates[key]


def observe(client: Any, recorder: Gateway) -> list[str]:
    """Put the hooks around an engine client of an API process and its handlers; return what they cannot observe."""
    listener = Listener(client, recorder)
    missing = [] if wrap(client.output_processor, "add_request", listener.engine_request) else ["request"]
    if not wrap(client.output_processor, "process_outputs", after=listener.stopped):
        missing.append("request: stop_reason of stop strings")
    if not wrap(client, "_record_admission_rejection", listener.rejected):
        missing.append("event: admission_rejected")
    for module, owner, method, prefix in HANDLERS:
        if not _handle(module, owner, method, prefix, client, listener):
            missing.append(f"request: what was asked (no {owner}.{method})")
    return missing


def _handle(module: str, owner: str, method: str, prefix: str, client: Any, listener: Listener) -> bool:
    """Hook one handler's method where it serves this client; return whether it is there."""
    try:
        handlers = getattr(importlib.import_module(module), owner)
        original = getattr(handlers, method)
    except (ImportError, AttributeError):
        return False

    @functools.wraps(original)
    async def handling(self: Any, request: Any, raw_request: Any = None, *args: Any, **kwargs: Any) -> Any:
        # Subclasses serve other dialects: there the body is not what this handler was asked.
        if type(self) is not handlers or self.engine_client is not client or raw_request is None:
            return await original(self, request, raw_request, *args, **kwargs)
        external_id = listener.named(prefix, self, request, raw_request)
        if external_id is not None:
            listener.asked(external_id, Asked(await _body(raw_request), raw_request.headers, request, self))
        result = None
        try:
            result = await original(self, request, raw_request, *args, **kwargs)
        finally:
            if not hasattr(result, "__aiter__"):  # a stream sends its engine request later, when it is read
                listener.answered(external_id)
        return result

    setattr(handlers, method, handling)
    return True


async def _body(raw_request: Any) -> Any:
    """Return the client's JSON as sent, or None. Only what was read before is looked at: to read here could wait."""
    if not (hasattr(raw_request, "_json") or hasattr(raw_request, "_body")):
        return None
    try:
        return await raw_request.json()
    except Exception:  # noqa: BLE001 - whatever it is, the request goes on
        return None
