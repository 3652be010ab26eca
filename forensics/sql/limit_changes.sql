-- When did a limit (of requests, of launches) or a setting change in the life of this run?
select e.engine_step, e.ts, e.what, e.detail, s.path as source_path, e.line
from event e
left join source s on s.source_id = e.source_id
where e.run_id = $run_id and e.replica_id = $replica_id and e.what in ('limit_change', 'batch_limit_change', 'config_change')
order by e.ts, e.engine_step, e.writer, e.seq
