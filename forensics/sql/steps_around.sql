-- Between which engine steps of this run did this writer write the records numbered $first and $last?
select max(engine_step) filter (where seq < $first) as after_step, min(engine_step) filter (where seq > $last) as until_step
from (
  select writer, seq, engine_step from batch where run_id = $run_id and replica_id = $replica_id
  union all
  select writer, seq, engine_step from step where run_id = $run_id and replica_id = $replica_id
)
where writer = $writer
