-- When was each request of this run first scheduled, and how long had it waited?
select ts, engine_step, req_id, queue_ms
from step
where run_id = $run_id and replica_id = $replica_id and queue_ms is not null
order by ts
