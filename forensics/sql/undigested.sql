-- Which requests became whole by their parts, and have no digest yet of what they now say?
select distinct r.effective_token_ids_sha256, r.decode_cfg_applied, r.raw_prompt_sha256, r.decode_cfg_requested
from request r
join bound b on b.run_id = r.run_id and b.replica_id = r.replica_id and b.req_id = r.req_id
where (r.input_sha256 is null and r.effective_token_ids_sha256 is not null and r.decode_cfg_applied is not null)
   or (r.asked_sha256 is null and r.raw_prompt_sha256 is not null and r.decode_cfg_requested is not null)
limit $limit
