-- Of the records and of the steps that chose a token, what share says who wrote them, and what the decision was?
select r.*, t.*
from (
  select avg(cast(run_id <> '' as integer)) as run_id, avg(cast(replica_id <> '' as integer)) as replica_id,
         sum(records) filter (where first_seq is not null) / sum(records) as seq, min(first_ts) as first_ts,
         max(last_ts) as last_ts
  from stretch
) r, (
  select count(*) as rows, count(token_id) as token_id, count(token_tag) as token_tag, count(top_logits) as top_logits,
         count(logit_dtype) as logit_dtype
  from step where token_index is not null
) t
where r.seq is not null or r.run_id is not null
