-- What did recorders report of themselves: losses, what policy left out or deleted, faults, the end?
select e.run_id, e.replica_id, e.writer, e.seq, e.ts, e.what, e.detail, e.source_id, s.path as source_path, e.line
from event e
left join source s on s.source_id = e.source_id
where e.what in ('drops', 'thinned', 'segments_deleted', 'recorder_fault', 'shutdown')
order by e.run_id, e.replica_id, e.writer, e.seq, e.ts
