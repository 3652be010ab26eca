-- What did each engine step do for this request, in order?
select t.*, s.path as source_path
from step t
left join source s on s.source_id = t.source_id
where t.run_id = $run_id and t.replica_id = $replica_id and t.req_id = $req_id
order by t.step
