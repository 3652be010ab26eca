-- Which requests had this effective input (token ids and decode configuration), under whatever model?
select r.*, coalesce(e.weights_sha256, e.model_id) as model_identity, s.path as source_path
from request r
left join engine e on e.run_id = r.run_id and e.replica_id = r.replica_id
left join source s on s.source_id = r.source_id
where r.input_sha256 = $input_sha256
order by r.arrival_ts, r.run_id, r.replica_id, r.req_id
