-- What ran in the engine steps from $first to $last of this run, on each rank, and what its rows had behind them?
select b.engine_step, b.rank, b.ts, b.batch_size, b.batch_tokens, b.padded_tokens, b.graph_mode, b.step_ms,
       b.queue_depth, b.num_preempted, b.vram_free_mb, b.headroom_mb, b.kv_blocks_free, b.kv_blocks_total,
       b.kv_pool_total_mb, b.paging_on, b.isolation_mode, b.isr_pinned_mb, b.ckpt_pinned_mb, b.kv_regime,
       coalesce(b.algo_id, b.kernel_variant) as tactic, t.context_tokens, t.resumed, t.recomputed_tokens,
       s.path as source_path, b.line
from batch b
left join (
  select engine_step, sum(num_computed_tokens) as context_tokens, count(*) filter (where resumed) as resumed,
         coalesce(sum(num_scheduled_tokens) filter (where resumed), 0) as recomputed_tokens
  from step
  where run_id = $run_id and replica_id = $replica_id and engine_step between $first and $last
  group by engine_step
) t on t.engine_step = b.engine_step
left join source s on s.source_id = b.source_id
where b.run_id = $run_id and b.replica_id = $replica_id and b.engine_step between $first and $last
order by b.engine_step, b.rank
