-- When did each request of this run arrive, and before which engine step?
select req_id, arrival_ts, arrival_step
from request
where run_id = $run_id and replica_id = $replica_id and arrival_ts is not null
order by arrival_ts, req_id
