-- Of which requests was the same thing asked (same raw prompt, configuration and served model) and not all had the same effective input?
with known as (
  select r.*, coalesce(e.served_model_name, e.model_id) as served_model
  from request r
  left join engine e on e.run_id = r.run_id and e.replica_id = r.replica_id
  where r.asked_sha256 is not null
),
drifting as (
  select asked_sha256, served_model
  from known
  group by asked_sha256, served_model
  having count(distinct input_sha256) > 1
)
select k.asked_sha256, k.served_model, k.input_sha256, k.run_id, k.replica_id, k.req_id, k.external_req_id,
       k.arrival_ts, k.effective_token_ids_sha256, k.effective_tokens, k.truncated, k.trunc_reason,
       k.decode_cfg_requested, k.decode_cfg_applied, k.output_token_ids_sha256, k.output_token_ids_sha256 as output,
       coalesce(k.output_tokens, len(k.output_token_ids)) as output_tokens, k.finish_reason,
       s.path as source_path, k.line
from known k
join drifting d on d.asked_sha256 = k.asked_sha256 and d.served_model is not distinct from k.served_model
left join source s on s.source_id = k.source_id
order by k.asked_sha256, k.served_model, k.arrival_ts, k.run_id, k.replica_id, k.req_id
