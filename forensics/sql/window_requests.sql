-- Which requests did this run take, in the order of their arrival, and in which engine step did each run last?
select r.*, t.last_step
from request r
left join (
  select req_id, max(engine_step) as last_step
  from step
  where run_id = $run_id and replica_id = $replica_id
  group by req_id
) t on t.req_id = r.req_id
where r.run_id = $run_id and r.replica_id = $replica_id
order by r.arrival_step, r.admission_ts, r.arrival_ts, r.seq, r.req_id
