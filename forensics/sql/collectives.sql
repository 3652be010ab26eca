-- Which collectives of this run are on record in the last whole engine steps from $first to $last, at most $most records?
with counted as (
    select engine_step, sum(count(*)) over (order by engine_step desc) as so_far
    from collective
    where run_id = $run_id and replica_id = $replica_id and engine_step between $first and $last
    group by engine_step
)
select c.engine_step, c.rank, c.comm_id, c.op, c.seq_no, c.bytes, c.start_ts, c.end_ts, c.comm_ms, c.compute_ms,
       c.retransmits, c.clock_id, b.batch_tokens, b.step_ms, c.line, s.path as source_path
from collective c
join counted using (engine_step)
left join batch b
    on b.run_id = c.run_id and b.replica_id = c.replica_id and b.engine_step = c.engine_step and b.rank = c.rank
left join source s on s.source_id = c.source_id
where c.run_id = $run_id and c.replica_id = $replica_id and counted.so_far <= $most
order by c.engine_step, c.comm_id, c.seq_no, c.rank
