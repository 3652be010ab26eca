-- What did each step do for requests that have a twin, in which launch, and which token did it choose how closely?
with twin as (
  select run_id, replica_id, req_id
  from request
  where input_sha256 is not null
  qualify count(*) over (partition by input_sha256) > 1
)
select t.run_id, t.replica_id, t.req_id, t.step, t.engine_step, t.token_index, t.token_id, t.token_tag, t.top_token_ids,
       t.top_token_tags, t.top_logits, t.margin, t.logit_dtype, t.logits_sha256, t.nonfinite_logits, t.resumed,
       t.num_computed_tokens, b.batch_size, b.batch_tokens, b.padded_tokens, b.graph_mode, e.token_tag_key_id
from step t
join twin w on w.run_id = t.run_id and w.replica_id = t.replica_id and w.req_id = t.req_id
left join engine e on e.run_id = t.run_id and e.replica_id = t.replica_id
left join (
  select run_id, replica_id, engine_step, batch_size, batch_tokens, padded_tokens, graph_mode
  from batch
  qualify row_number() over (partition by run_id, replica_id, engine_step order by rank) = 1
) b on b.run_id = t.run_id and b.replica_id = t.replica_id and b.engine_step = t.engine_step
order by t.run_id, t.replica_id, t.req_id, t.step
