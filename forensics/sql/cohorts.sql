-- Which requests had the same effective request (same input, same model) and not all the same output?
with known as (
  select r.*, coalesce(e.weights_sha256, e.model_id) as model_identity
  from request r
  left join engine e on e.run_id = r.run_id and e.replica_id = r.replica_id
  where r.input_sha256 is not null
),
diverging as (
  select input_sha256, model_identity
  from known
  group by input_sha256, model_identity
  having count(distinct output_token_ids_sha256) > 1
)
select k.input_sha256, k.model_identity, k.run_id, k.replica_id, k.req_id, k.external_req_id, k.arrival_ts,
       k.output_token_ids_sha256, coalesce(k.output_tokens, len(k.output_token_ids)) as output_tokens,
       k.output_token_ids, k.finish_reason, k.token_rule, k.decode_cfg_applied, s.path as source_path, k.line
from known k
join diverging d on d.input_sha256 = k.input_sha256 and d.model_identity is not distinct from k.model_identity
left join source s on s.source_id = k.source_id
order by k.input_sha256, k.model_identity, k.arrival_ts, k.run_id, k.replica_id, k.req_id
