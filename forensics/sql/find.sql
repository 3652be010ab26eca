-- Which requests were being served between $since and $until, on this replica and model, with these marks?
-- A parameter that is null asks nothing.
select r.run_id, r.replica_id, r.req_id, r.external_req_id, coalesce(r.arrival_ts, r.admission_ts, r.ts) as arrival_ts,
       coalesce(r.finish_ts, r.arrival_ts, r.admission_ts, r.ts) as finish_ts,
       coalesce(e.served_model_name, e.model_id) as model, r.effective_tokens,
       coalesce(r.output_tokens, len(r.output_token_ids)) as output_tokens, r.finish_reason,
       s.path as source_path, r.line, count(*) over () as found
from request r
left join engine e on e.run_id = r.run_id and e.replica_id = r.replica_id
left join source s on s.source_id = r.source_id
where ($since is null or coalesce(r.finish_ts, r.arrival_ts, r.admission_ts, r.ts) >= $since)
  and ($until is null or coalesce(r.arrival_ts, r.admission_ts, r.ts) <= $until)
  and ($replica is null or r.replica_id = $replica)
  and ($model is null or contains(lower(e.served_model_name), lower($model)) or contains(lower(e.model_id), lower($model)))
  and ($part_of_id is null or contains(r.req_id, $part_of_id) or contains(r.external_req_id, $part_of_id))
  and ($prompts is null or list_contains($prompts, lower(r.raw_prompt_sha256))
       or list_contains($prompts, lower(r.effective_text_sha256)))
  and ($prompt_sha256 is null or starts_with(lower(r.raw_prompt_sha256), lower($prompt_sha256))
       or starts_with(lower(r.effective_text_sha256), lower($prompt_sha256))
       or starts_with(lower(r.effective_token_ids_sha256), lower($prompt_sha256)))
  and ($output is null or contains(r.output_text, $output))
  and ($output_sha256 is null or starts_with(lower(r.output_token_ids_sha256), lower($output_sha256)))
  and ($finish is null or r.finish_reason = $finish)
order by arrival_ts, r.run_id, r.replica_id, r.req_id
limit $limit
