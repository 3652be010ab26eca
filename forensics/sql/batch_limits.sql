-- When was a limit of what a launch may hold changed in this run?
select e.engine_step, e.ts, e.detail, s.path as source_path, e.line
from event e
left join source s on s.source_id = e.source_id
where e.run_id = $run_id and e.replica_id = $replica_id and e.what = 'batch_limit_change' and e.engine_step is not null
order by e.engine_step, e.writer, e.seq
