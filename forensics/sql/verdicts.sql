-- Which verdicts are on file for this request?
select v.*, s.path as source_path, 1 as line
from verdict v
left join source s on s.source_id = v.source_id
where v.req_id = $req_id and v.run_id = $run_id
order by v.source_id, v.id
