-- Which requests asked for the same thing (raw prompt and requested configuration), whatever became of it?
select r.*, coalesce(e.served_model_name, e.model_id) as served_model, s.path as source_path
from request r
left join engine e on e.run_id = r.run_id and e.replica_id = r.replica_id
left join source s on s.source_id = r.source_id
where r.asked_sha256 = $asked_sha256
order by r.arrival_ts, r.run_id, r.replica_id, r.req_id
