-- What ran in the engine steps from $first to $last of this run, on each rank?
select b.*, s.path as source_path
from batch b
left join source s on s.source_id = b.source_id
where b.run_id = $run_id and b.replica_id = $replica_id and b.engine_step between $first and $last
order by b.engine_step, b.rank
