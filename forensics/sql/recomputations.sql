-- Which requests of this run computed KV again after a preemption, since when had each been without, and until when did it run?
select *
from (
  select req_id, engine_step, num_scheduled_tokens as tokens, resumed, source_id, line,
         lag(engine_step) over (partition by req_id order by engine_step) as before_step,
         max(engine_step) over (partition by req_id) as last_step
  from step
  where run_id = $run_id and replica_id = $replica_id and engine_step is not null
)
where resumed
order by engine_step, req_id
