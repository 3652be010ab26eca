-- Which requests of this run computed KV again after a preemption, after which step had each lost it, and until when did it hold it?
with lived as (
  select req_id, engine_step, num_scheduled_tokens as tokens, resumed, source_id, line,
         lag(engine_step) over (partition by req_id order by engine_step) as before_step,
         max(engine_step) over (partition by req_id) as last_step
  from step
  where run_id = $run_id and replica_id = $replica_id and engine_step is not null
)
select req_id, engine_step, tokens, before_step, source_id, line,
       coalesce(lead(before_step) over (partition by req_id order by engine_step) + 1, last_step) as held_until
from lived
where resumed
order by engine_step, req_id
