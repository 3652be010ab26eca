-- Which runs have launches on record, from when to when?
select run_id, replica_id, min(ts) as begins, max(ts) as ends, count(distinct engine_step) as launches
from batch
group by run_id, replica_id
order by begins, run_id, replica_id
