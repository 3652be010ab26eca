"""A case straight from the log of one vLLM run, whole: replay's tests need nothing of forensics."""

from arms import merged_requests
from serving import of

from replay.case import Arm, Asked, Case, Order, TokenStep, Window


def window_of(lines):
    """Return the whole run, from its first step on."""
    steps = {}
    for one in of(lines, "step"):
        steps.setdefault(one["engine_step"], []).append(one)
    requests = [one for one in merged_requests(lines).values() if "arrival_step" in one]
    requests.sort(key=lambda one: (one["arrival_step"], one["admission_ts"]))
    orders = [
        Order(one["engine_step"], sum((asked["arrival_step"], asked["admission_ts"]) <= (one["engine_step"], one["ts"])
                                      for asked in requests), one["what"],
              {"req_id": one["req_id"]} if one["what"] == "abort" else one["detail"])
        for what in ("abort", "batch_limit_change") for one in of(lines, "event", what)
    ]  # fmt: skip
    return Window(
        0, "engine_start", tuple(asked_of(one) for one in requests), tuple(orders),
        tuple((step, tuple((one["req_id"], one["num_scheduled_tokens"], one["num_computed_tokens"])
                           for one in sorted(rows, key=lambda one: one["row"])))
              for step, rows in sorted(steps.items())),
    )  # fmt: skip


def asked_of(request):
    return Asked(
        request["req_id"], request["arrival_step"], request["effective_tokens"], request["decode_cfg_applied"],
        tuple(request["effective_token_ids"]), request["effective_token_ids_sha256"],
        tuple(request.get("block_hashes", ())), priority=request["priority"], arrival_ts=request["arrival_ts"],
        output_tokens=request.get("output_tokens"), finish_reason=request.get("finish_reason"),
    )  # fmt: skip


def rows_of(lines, req_id):
    """Return the steps of a request that chose a token that it kept."""
    return [one for one in of(lines, "step") if one["req_id"] == req_id and "token_index" in one]


def case_of(lines, req_id):
    """Return the case of a request against itself alone."""
    engine, request = {}, merged_requests(lines)[req_id]
    for one in of(lines, "engine"):
        engine |= one
    window = window_of(lines)
    steps = tuple(TokenStep(one["token_index"], one["token_id"], tuple(one["top_token_ids"]), tuple(one["top_logits"]),
                            one["logits_sha256"]) for one in rows_of(lines, req_id))  # fmt: skip
    own = next(one for one in window.requests if one.req_id == req_id)
    alone = Window(0, "engine_start", (Asked(**vars(own) | {"arrival_step": 0}),))
    orders = "incident" if any(one.what != "abort" for one in window.orders) else "none"
    incident = Arm("run", req_id, {"company.requests": "incident", "engine.orders": orders}, steps=steps,
                   output_token_ids=tuple(request["output_token_ids"]), window=window)  # fmt: skip
    reference = Arm("synthetic", req_id, {"company.requests": "alone", "engine.orders": "none"}, synthetic=True,
                    window=alone)  # fmt: skip
    return Case("", own.token_ids, own.decode_cfg, "argmax", engine, incident, reference)
