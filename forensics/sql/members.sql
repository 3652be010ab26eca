-- Which rows shared the launches from engine step $first to $last of this run?
select t.engine_step, t.req_id, t.row, t.num_scheduled_tokens, t.num_computed_tokens, t.token_index,
       s.path as source_path, t.line
from step t
left join source s on s.source_id = t.source_id
where t.run_id = $run_id and t.replica_id = $replica_id and t.engine_step between $first and $last
order by t.engine_step, t.row, t.req_id
