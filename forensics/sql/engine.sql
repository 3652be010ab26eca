-- What was the engine of this run?
select e.*, s.path as source_path
from engine e
left join source s on s.source_id = e.source_id
where e.run_id = $run_id and e.replica_id = $replica_id
