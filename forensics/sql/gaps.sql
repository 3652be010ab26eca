-- Where do records of a writer miss, how many, and between which engine steps and times of its other records?
with placed as (
  select source_id, run_id, replica_id, writer, first_seq, max(last_seq) over before as before_seq,
         max(last_step) over before as after_step, min(first_step) over rest as until_step,
         max(last_ts) over before as after_ts, min(first_ts) over rest as until_ts
  from stretch
  where first_seq is not null
  window
    before as (partition by run_id, case when run_id = '' then '' else replica_id end, writer
               order by first_seq, last_seq, source_id rows between unbounded preceding and 1 preceding),
    rest as (partition by run_id, case when run_id = '' then '' else replica_id end, writer
             order by first_seq, last_seq, source_id rows between current row and unbounded following)
)
select p.source_id, s.path as source_path, p.run_id, p.replica_id, p.writer, p.before_seq, p.first_seq,
       cast(p.first_seq as double) - coalesce(p.before_seq, -1) - 1 as missing,
       p.after_step, p.until_step, p.after_ts, p.until_ts
from placed p
left join source s on s.source_id = p.source_id
where cast(p.first_seq as hugeint) > coalesce(cast(p.before_seq as hugeint), 0) + 1
order by p.run_id, p.replica_id, p.writer, p.first_seq
