-- Which run is in which file, from when to when, with how many records, under which clocks?
select t.source_id, s.path as source_path, s.format, s.read, s.quarantined, t.run_id, t.replica_id,
       sum(t.records) as records, min(t.first_ts) as first_ts, max(t.last_ts) as last_ts,
       count(*) filter (where t.first_seq is null) > 0 as unnumbered,
       list_sort(list(distinct t.clock_id) filter (where t.clock_id is not null)) as clocks, any_value(e.clock) as clock
from stretch t
left join source s on s.source_id = t.source_id
left join engine e on e.run_id = t.run_id and e.replica_id = t.replica_id
group by t.source_id, s.path, s.format, s.read, s.quarantined, t.run_id, t.replica_id
order by t.source_id, first_ts, t.run_id, t.replica_id
