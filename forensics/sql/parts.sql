-- What did gateways and API processes say of this request, each in its own words, and where does it stand?
select p.*, s.path as source_path
from binding b
join stated_request p on p.run_id = '' and p.replica_id = b.part_replica_id and p.req_id = b.part_req_id
left join source s on s.source_id = p.source_id
where b.run_id = $run_id and b.replica_id = $replica_id and b.req_id = $req_id
order by p.arrival_ts, s.path, p.line
