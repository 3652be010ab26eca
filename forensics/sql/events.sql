-- What happened to the runtime in the engine steps from $first to $last of this run, or at no known step?
select e.*, s.path as source_path
from event e
left join source s on s.source_id = e.source_id
where e.run_id = $run_id and e.replica_id = $replica_id
  and (e.engine_step is null or e.engine_step between $first and $last)
order by e.engine_step, e.ts, e.writer, e.seq, e.content_hash
