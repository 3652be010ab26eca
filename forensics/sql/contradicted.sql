-- Which requests have parts that contradict the engine, or each other, in which fields, and where do both stand?
select r.run_id, r.replica_id, r.req_id, array_to_string(r.contradicted, ', ') as fields,
       s.path as source_path, r.line, t.path as part_path, p.line as part_line
from request r
join binding b on b.run_id = r.run_id and b.replica_id = r.replica_id and b.req_id = r.req_id
join stated_request p on p.run_id = '' and p.replica_id = b.part_replica_id and p.req_id = b.part_req_id
left join source s on s.source_id = r.source_id
left join source t on t.source_id = p.source_id
where len(r.contradicted) > 0
order by r.run_id, r.replica_id, r.req_id, t.path, p.line
