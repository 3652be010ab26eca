-- Which kernels ran in the engine steps from $first to $last of this run?
select k.*, s.path as source_path
from kernel k
left join source s on s.source_id = k.source_id
where k.run_id = $run_id and k.replica_id = $replica_id and k.engine_step between $first and $last
order by k.engine_step, k.rank, k.writer, k.seq
