-- What did each engine step do for each request, in which launch, and how close was the token that it chose?
select r.run_id, r.req_id, coalesce(r.external_req_id, r.req_id) as name, r.finish_reason, r.effective_tokens,
       t.step, t.engine_step, t.token_index, t.token_id, t.top_token_ids, t.top_logits, t.logit_dtype, t.logits_sha256,
       t.resumed, b.batch_size, b.batch_tokens, b.kv_blocks_total
from step t
join request r on r.run_id = t.run_id and r.replica_id = t.replica_id and r.req_id = t.req_id
left join batch b on b.run_id = t.run_id and b.replica_id = t.replica_id and b.engine_step = t.engine_step
                 and coalesce(b.rank, 0) = 0
order by r.run_id, r.req_id, t.step
