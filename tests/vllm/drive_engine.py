"""Run a vLLM engine in this process and print what came out, as one JSON line after MARKER.

A process of its own for each arm, so that no test sees another's engine. What really ran is noted
here on a path of its own (`_prepare_inputs`), so that the recorder is not its own witness.
"""

import argparse
import json
import multiprocessing
import os

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
MARKER = "RESULT "
KEPT = []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--max-tokens", type=int, default=40)
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--prefix-caching", action="store_true")
    parser.add_argument("--exercise", action="store_true", help="use what a server rarely does; see `exercise`")
    parser.add_argument("--ranked", action="store_true", help="priorities, and limits that change; see `ranked`")
    parser.add_argument("--break-hook", choices=["observer", "worker", "attach"])
    parser.add_argument(
        "--fork", action="store_true", help="build the engine in a forked child of a process with the hooks"
    )
    options = parser.parse_args()
    if options.fork:
        from vllm.plugins import load_general_plugins

        load_general_plugins()
        child = multiprocessing.get_context("fork").Process(target=run, args=(options,))
        child.start()
        child.join()
        raise SystemExit(child.exitcode)
    run(options)


def run(options: argparse.Namespace) -> None:
    from vllm import LLM, SamplingParams
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    break_hook(options.break_hook)
    launches: list[list[tuple[str, int]]] = []
    prepare = GPUModelRunner._prepare_inputs

    def noting(self, scheduler_output, num_scheduled_tokens):
        launches.append(list(zip(self.input_batch.req_ids, num_scheduled_tokens.tolist(), strict=True)))
        return prepare(self, scheduler_output, num_scheduled_tokens)

    GPUModelRunner._prepare_inputs = noting
    llm = LLM(
        options.model, dtype="bfloat16", enforce_eager=True, max_model_len=256, block_size=32, max_num_seqs=8,
        max_num_batched_tokens=64, num_gpu_blocks_override=options.blocks, logprobs_mode="raw_logits",
        enable_prefix_caching=options.prefix_caching, disable_log_stats=True,
        scheduling_policy="priority" if options.ranked else "fcfs",
    )  # fmt: skip
    KEPT.append(llm)  # no destructor may close the recorder on the way out
    params = SamplingParams(temperature=0, max_tokens=options.max_tokens, ignore_eos=True, logprobs=4)
    if options.exercise or options.ranked:
        print(MARKER + json.dumps(exercise(llm) if options.exercise else ranked(llm)), flush=True)
        return
    prompts = [{"prompt_token_ids": [(7 * i + 3 * j) % 200 + 5 for j in range(20 + 9 * i)]} for i in range(6)]
    if options.prefix_caching:
        llm.generate(prompts[-1:], params)
        launches.clear()
        prompts = prompts[-1:]
    done = llm.generate(prompts, params)
    outputs = {one.request_id: list(one.outputs[0].token_ids) for one in done}
    raw = {one.request_id: [top_logits(at) for at in one.outputs[0].logprobs] for one in done}
    print(MARKER + json.dumps({"outputs": outputs, "raw": raw, "launches": launches}), flush=True)


def ranked(llm) -> dict:
    """Ask ten requests, each more urgent than those before, while somebody changes the limits of the engine."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    scheduler = engine.engine_core.engine_core.scheduler
    limits = {3: (3, 64), 6: (6, 48), 8: (6, 20)}
    for at in range(10):
        scheduler.max_num_active_reqs, scheduler.max_num_scheduled_tokens = limits.get(
            at, (scheduler.max_num_active_reqs, scheduler.max_num_scheduled_tokens)
        )
        ids = [(7 * at + 3 * place) % 200 + 5 for place in range(20 + 5 * at)]
        params = SamplingParams(temperature=0, max_tokens=24 + at, ignore_eos=True)
        engine.add_request(f"r{at}", {"prompt_token_ids": ids}, params, priority=10 - at)
        for _ in range(3):
            engine.step()
    while engine.has_unfinished_requests():
        engine.step()
    return {}


def exercise(llm) -> dict:
    """Fill and empty the prefix cache, salt it, stop early, and change limits and weights' name on the way."""
    from vllm import SamplingParams

    core = llm.llm_engine.engine_core.engine_core
    scheduler, runner = core.scheduler, core.model_executor.driver_worker.worker.model_runner
    blocks: list[list[list[list[int]]]] = []
    prepare = runner._prepare_inputs

    def noting(scheduler_output, num_scheduled_tokens):
        order = [runner.input_batch.req_ids[row] for row in range(runner.input_batch.num_reqs)]
        blocks.append([[list(group) for group in runner.requests[req_id].block_ids] for req_id in order])
        return prepare(scheduler_output, num_scheduled_tokens)

    runner._prepare_inputs = noting
    free = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    prompts = [[(11 * i + 5 * j) % 200 + 5 for j in range(70)] for i in range(4)]
    first = llm.generate([{"prompt_token_ids": ids} for ids in prompts], free)
    token = first[0].outputs[0].token_ids[3]
    cut = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=[token])
    llm.generate([{"prompt_token_ids": prompts[0]}], cut)
    scheduler.max_num_scheduled_tokens = 48
    for salt in ("pepper", "pepper", "paprika"):
        llm.generate([{"prompt_token_ids": prompts[1], "cache_salt": salt}], free)
    core.set_weight_version("second")
    llm.llm_engine.reset_prefix_cache()
    llm.generate([{"prompt_token_ids": prompts[1]}], free, priority=[0])
    return {"cached": sum(block.block_hash is not None for block in scheduler.kv_cache_manager.block_pool.blocks),
            "blocks": blocks}  # fmt: skip


def top_logits(at) -> list[float]:
    return sorted((entry.logprob for entry in at.values()), reverse=True)[:4]


def break_hook(which: str | None) -> None:
    def broken(*_args, **_kwargs):
        raise RuntimeError("broken on purpose")

    if which == "observer":
        from replay.engines.vllm_observer import Observer

        broken.__name__ = "updated"
        Observer.updated = broken
    if which == "worker":
        from replay.engines.vllm_worker import LaunchWatch

        broken.__name__ = "logits"
        LaunchWatch.logits = broken
    if which == "attach":
        from replay.engines import vllm_records

        vllm_records.engine_fields = broken


if __name__ == "__main__":
    main()
