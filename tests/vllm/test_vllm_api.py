"""The API process's part of the record, on a real server with real clients: what was asked, and what became of it."""

import asyncio
import hashlib
import importlib.util
import json
import re

import pytest

# A folder of that name on the path is not vLLM.
if getattr(importlib.util.find_spec("vllm"), "origin", None) is None:
    pytest.skip("vLLM is not in this environment (make test-vllm)", allow_module_level=True)

from arms import MODEL, contract_faults
from serving import lines_of, of, server
from tokenizers import Tokenizer

from replay.engines.vllm_api import PENDING_LIMIT, Asked, Listener
from replay.record import token_ids_sha256

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if tools %}T{{ tools|length }}{% endif %}>"
)
TEXT = "def add(a, b):\n    return a + b\n\n\ndef mean(values):\n    return sum(values) / len(values)\n"
IDS = list(range(5, 45))
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Write a función.\n"}]
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
TENANT = {"X-Tenant-Id": "tenant seven"}
SECRETS = ("def add", "Be brief", "función", "look", "tenant seven", "STOPHERE")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The same requests, recorder on and off: {arm: answers}, and the recording."""
    answers, folder = {}, tmp_path_factory.mktemp("served")
    (folder / "chat.jinja").write_text(TEMPLATE)
    flags = ("--chat-template", str(folder / "chat.jinja"), "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    for arm, record in (("on", folder / "log"), ("off", None)):
        with server(MODEL, folder, *flags, record=record) as port:
            answers[arm] = asyncio.run(ask_all(port))
        if record is not None:
            said = (folder / "server.txt").read_text()
    return answers, lines_of(folder / "log", "vllm-api"), lines_of(folder / "log"), said


async def ask_all(port):
    from openai import AsyncOpenAI, BadRequestError

    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused") as client:

        async def text(name, prompt, headers=(), **more):
            extra = {"ignore_eos": True} | more.pop("extra", {})
            common = {"model": "tiny", "temperature": 0, "max_tokens": 6, "logprobs": 2} | more
            named = {"X-Request-Id": name} | dict(headers)
            answer = await client.completions.create(prompt=prompt, extra_headers=named, extra_body=extra, **common)
            return [(choice.text, choice.finish_reason, choice.logprobs.top_logprobs) for choice in answer.choices]

        async def chat(name, **more):
            common = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 6, "logprobs": True}
            answer = await client.chat.completions.create(extra_headers={"X-Request-Id": name}, **(common | more))
            return [(choice.message.content, choice.logprobs.model_dump()) for choice in answer.choices]

        async def stream(name):
            chunks = await client.chat.completions.create(
                model="tiny", messages=MESSAGES, temperature=0, max_tokens=6, stream=True,
                extra_headers={"X-Request-Id": name},
            )  # fmt: skip
            return [chunk.choices[0].delta.content async for chunk in chunks]

        answers = {
            "plain": await text("plain", TEXT),
            "again": await text("plain", TEXT),  # a client that sends its id a second time
            "ids": await text("ids", IDS),
            "several": await text("several", [TEXT, "x = 1\n"]),
            "two": len(await text("two", TEXT, n=2, temperature=1)),
            "right": await text("right", TEXT, extra={"truncate_prompt_tokens": 16, "truncation_side": "right"}),
            "left": await text("left", TEXT, extra={"truncate_prompt_tokens": 16, "truncation_side": "left"}),
            "tokenizer": await text("tokenizer", TEXT, extra={"truncate_prompt_tokens": 16}),
            "cut ids": await text("cut", IDS, extra={"truncate_prompt_tokens": 16}),
            "roomy": await text("roomy", TEXT, extra={"truncate_prompt_tokens": 500}),
            "context": await text("context", TEXT * 60, max_tokens=1, extra={"truncate_prompt_tokens": -1}),
            "tenant": await text(
                "tenant", TEXT, {"X-Tenant-Id": "tenant seven"}, seed=7, extra={"vllm_xargs": {"a": 1}}
            ),
            "chat": await chat("chat"),
            "tools": await chat("tools", tools=TOOLS, tool_choice="auto"),
            "stream": await stream("stream"),
        }
        word = answers["plain"][0][0]
        answers["stopped"] = await text("stopped", TEXT, stop=[word[2:4], "STOPHERE"])
        with pytest.raises(BadRequestError):
            await text("refused", TEXT, max_tokens=5000)
        with pytest.raises(BadRequestError):
            await text("odd", TEXT, extra={"truncate_prompt_tokens": 5000})
    return answers


def part(served, external):
    """Return the API process's part of one request: all its records with this external id, merged by req_id."""
    merged = {}
    for line in of(served[1], "request"):
        if line.get("external_req_id") == external:
            assert line["req_id"] not in merged
            merged[line["req_id"]] = line
    assert len(merged) == 1, (external, merged)
    return next(iter(merged.values()))


def sha(value):
    text = (
        value
        if isinstance(value, str)
        else json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    )
    return hashlib.sha256(text.encode()).hexdigest()


def test_recorder_changes_no_answer(served):
    answers = served[0]
    assert answers["on"] == answers["off"]


def test_nothing_was_missing_and_nothing_failed(served):
    assert "cannot observe" not in served[3]
    assert "not recording" not in served[3]
    assert of(served[2], "event", "recorder_fault") == []
    assert contract_faults(served[2]) == []


def test_every_part_names_a_request_of_the_engine_and_no_run(served):
    engine = {
        line["req_id"]: line["external_req_id"] for line in of(served[2], "request") if "effective_tokens" in line
    }
    parts = [line for line in of(served[1], "request") if "raw_prompt_sha256" in line]
    assert len(parts) == len(engine) == 18
    assert {line["req_id"] for line in parts} == set(engine), "a child of n=2 and a repeated client id are told apart"
    assert all(line["external_req_id"] == engine[line["req_id"]] for line in parts)
    assert not [line for line in of(served[1], "request") if {"run_id", "replica_id"} & line.keys()]


def test_text_prompt(served):
    one = part(served, "cmpl-several-0")
    assert one["raw_prompt_sha256"] == one["effective_text_sha256"] == sha(TEXT)
    assert part(served, "cmpl-several-1")["raw_prompt_sha256"] == sha("x = 1\n")
    assert one["served_model_name"] == "tiny"
    assert one["decode_cfg_requested"] == {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
    assert (one["truncated"], one["tokens_before_truncation"] > 20) == (False, True)
    assert "chat_template_sha256" not in one


def test_the_same_asked_twice_is_the_same(served):
    mine = [line for line in of(served[1], "request") if line.get("external_req_id") == "cmpl-plain-0"]
    assert len(mine) == 2
    assert len({(line["raw_prompt_sha256"], sha(line["decode_cfg_requested"])) for line in mine}) == 1


def test_token_ids_as_prompt(served):
    one = part(served, "cmpl-ids-0")
    assert one["raw_prompt_sha256"] == sha(IDS)
    assert "effective_text_sha256" not in one
    assert (one["truncated"], one["tokens_before_truncation"]) == (False, len(IDS))


def test_chat(served):
    one = part(served, "chatcmpl-chat")
    assert one["raw_prompt_sha256"] == sha(MESSAGES)
    assert one["effective_text_sha256"] == sha("<system>Be brief.\n<user>Write a función.\n\n>")
    assert one["chat_template_sha256"] == sha(TEMPLATE)
    assert one["system_message_sha256"] == sha("Be brief.")
    assert one["decode_cfg_requested"] == {"temperature": 0, "max_tokens": 6}
    assert "tool_schemas_sha256" not in one
    streamed = part(served, "chatcmpl-stream")
    assert streamed["raw_prompt_sha256"] == one["raw_prompt_sha256"], "a stream asks the same"
    assert streamed["decode_cfg_requested"] == one["decode_cfg_requested"]


def test_tools_are_part_of_what_was_asked(served):
    one = part(served, "chatcmpl-tools")
    assert one["tool_schemas_sha256"] == sha(TOOLS)
    assert one["raw_prompt_sha256"] == sha({"messages": MESSAGES, "tools": TOOLS})
    assert one["decode_cfg_requested"]["tool_choice"] == "sha256:" + sha('"auto"')


@pytest.mark.parametrize(
    ("external", "prompt", "kept", "side", "reason"),
    [
        ("right", TEXT, 16, "right", "truncate_prompt_tokens"),
        ("left", TEXT, 16, "left", "truncate_prompt_tokens"),
        ("tokenizer", TEXT, 16, "left", "truncate_prompt_tokens"),  # the side is vLLM's default
        ("cut", IDS, 16, "left", "truncate_prompt_tokens"),
        ("context", TEXT * 60, 1023, "left", "context_limit"),
    ],
)
def test_truncation(served, external, prompt, kept, side, reason):
    one = part(served, f"cmpl-{external}-0")
    engine = next(r for r in of(served[2], "request") if r["req_id"] == one["req_id"] and "effective_tokens" in r)
    whole = Tokenizer.from_file(f"{MODEL}/tokenizer.json").encode(prompt).ids if prompt is not IDS else IDS
    boundary = len(whole) - kept if side == "left" else kept
    seen = whole[boundary:] if side == "left" else whole[:boundary]
    assert engine["effective_token_ids_sha256"] == token_ids_sha256(seen)
    assert (one["truncated"], one["tokens_before_truncation"]) == (True, len(whole))
    assert (one["trunc_boundary"], one["trunc_side"], one["trunc_reason"]) == (boundary, side, reason)
    assert one["raw_prompt_sha256"] == sha(prompt)


def test_a_limit_that_cuts_nothing(served):
    one = part(served, "cmpl-roomy-0")
    assert one["truncated"] is False
    assert "trunc_reason" not in one
    assert one["shaping_events"] == [{"what": "truncate_prompt_tokens", "value": 500}]
    assert one["decode_cfg_requested"] == part(served, "cmpl-several-0")["decode_cfg_requested"], "the same was asked"


def test_names_are_those_of_the_applied_configuration(served):
    one = part(served, "cmpl-tenant-0")
    assert one["decode_cfg_requested"]["extra_args"] == {"a": 1}
    assert one["decode_cfg_requested"]["seed"] == 7
    assert re.fullmatch("[0-9a-f]{64}", one["tenant_sha256"])
    assert one["tenant_sha256"] != sha("tenant seven"), "without the key of the recording nobody can try names"
    assert "tenant_sha256" not in part(served, "cmpl-ids-0")


def test_a_stop_string_is_told_where_it_is_found(served):
    one = part(served, "cmpl-stopped-0")
    said = [line for line in of(served[1], "request") if line["req_id"] == one["req_id"] and "stop_reason" in line]
    assert [line["stop_reason"] for line in said] == ["stop_string"]
    ((text, reason, _),) = served[0]["on"]["stopped"]
    assert (reason, text) == ("stop", served[0]["on"]["plain"][0][0][:2])
    ended = next(r for r in of(served[2], "request") if r["req_id"] == one["req_id"] and "finish_reason" in r)
    assert ended["finish_reason"] == "abort", "all that the engine core hears"
    others = [line for line in of(served[1], "request") if "stop_reason" in line and line["req_id"] != one["req_id"]]
    assert others == []


def test_no_text_is_written(served):
    for line in served[1]:
        written = json.dumps(line, ensure_ascii=False)
        assert not [secret for secret in SECRETS if secret in written and secret != "STOPHERE"]
    stopped = part(served, "cmpl-stopped-0")["decode_cfg_requested"]["stop"]
    assert stopped[1] == "STOPHERE", "stop strings are configuration: the applied one has them in clear too"


class Recorded(list):
    """Stands in for a recorder: keeps what would be written."""

    def guard(self, hook):
        return hook

    def write(self, kind, **fields):
        self.append((kind, {name: value for name, value in fields.items() if value is not None}))


def test_what_never_reaches_the_engine_is_forgotten():
    listener = Listener(type("Client", (), {"renderer": None}), Recorded())
    body = {"prompt": "a"}
    listener.asked("cmpl-a", Asked(body, {}, None, None))
    listener.asked("cmpl-a", Asked(body, {}, None, None))
    assert listener.pending == {"cmpl-a": None}, "two at once under one id: which is which nobody can say"
    listener.answered("cmpl-a")
    assert listener.pending == {}
    for number in range(PENDING_LIMIT + 5):
        listener.asked(f"cmpl-{number}", Asked(body, {}, None, None))
    assert len(listener.pending) == PENDING_LIMIT
    listener.asked("cmpl-beams", Asked(body | {"use_beam_search": True}, {}, None, None))
    assert "cmpl-beams" not in listener.pending
