-- What is on record of these requests of one run?
select r.*, s.path as source_path
from request r
left join source s on s.source_id = r.source_id
where r.run_id = $run_id and r.replica_id = $replica_id and list_contains($req_ids, r.req_id)
order by r.req_id
