-- Which requests between $since and $until have a twin in there, another run of the same effective request and model?
with known as (
  select r.run_id, r.replica_id, r.req_id, r.external_req_id, coalesce(r.arrival_ts, r.admission_ts, r.ts) as arrival_ts,
         r.input_sha256, coalesce(e.weights_sha256, e.model_id) as model_identity, r.decode_cfg_applied,
         r.output_token_ids, r.output_token_ids_sha256, r.finish_reason, r.stop_reason, e.token_tag_key_id,
         md5(concat_ws('|', e.engine, e.engine_version, e.versions, e.config, e.device, e.dtype)) as engine_facts
  from request r
  left join engine e on e.run_id = r.run_id and e.replica_id = r.replica_id
  where r.input_sha256 is not null
    and ($since is null or coalesce(r.finish_ts, r.arrival_ts, r.admission_ts, r.ts) >= $since)
    and ($until is null or coalesce(r.arrival_ts, r.admission_ts, r.ts) <= $until)
    and ($model is null or contains(lower(e.served_model_name), lower($model)) or contains(lower(e.model_id), lower($model)))
)
select *
from known
where model_identity is not null
qualify count(*) over (partition by input_sha256, model_identity) > 1
order by input_sha256, model_identity, arrival_ts, run_id, replica_id, req_id
