-- What is on record of the request that the engine or the client calls $req_id?
select r.*, s.path as source_path
from request r
left join source s on s.source_id = r.source_id
where r.req_id = $req_id or r.external_req_id = $req_id
order by r.arrival_ts, r.run_id, r.replica_id, r.req_id
