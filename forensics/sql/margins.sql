-- How far ahead was each chosen token of the next best one, in requests between $since and $until on this replica and model?
select t.run_id, t.replica_id, t.req_id, t.token_index, coalesce(t.margin, t.top_logits[1] - t.top_logits[2]) as margin,
       t.top_logits[1] as top_logit, t.logit_dtype, coalesce(r.system_message_sha256, r.routing_template_version) as family
from step t
join request r on r.run_id = t.run_id and r.replica_id = t.replica_id and r.req_id = t.req_id
left join engine e on e.run_id = r.run_id and e.replica_id = r.replica_id
where t.token_index is not null
  and ($since is null or coalesce(r.finish_ts, r.arrival_ts, r.admission_ts, r.ts) >= $since)
  and ($until is null or coalesce(r.arrival_ts, r.admission_ts, r.ts) <= $until)
  and ($replica is null or r.replica_id = $replica)
  and ($model is null or contains(lower(e.served_model_name), lower($model)) or contains(lower(e.model_id), lower($model)))
order by r.arrival_ts, t.run_id, t.replica_id, t.req_id, t.token_index
