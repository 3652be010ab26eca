-- Which matrix products ran in the engine steps from $first to $last of this run, and which are of no step and no time?
select distinct engine_step, name, algo, shape
from kernel
where run_id = $run_id and replica_id = $replica_id and starts_with(shape, 'm=')
  and (engine_step between $first and $last or (engine_step is null and start_ts is null))
