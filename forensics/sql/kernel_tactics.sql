-- Which algorithms ran in the engine steps from $first to $last of this run, and in how many launches of kernels?
select engine_step, concat_ws(' ', role, coalesce(algo, name)) as tactic, count(*) as launches
from kernel
where run_id = $run_id and replica_id = $replica_id and engine_step between $first and $last
group by engine_step, tactic
order by engine_step, tactic
