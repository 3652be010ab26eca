-- Which requests had the same effective request (same input, same model) and not all the same output?
-- Where a request states no output, the tokens (or tags) of its steps stand for it. Without either it has none.
with spoken as (
  select s.run_id, s.replica_id, s.req_id,
         'steps:' || md5(string_agg(coalesce(cast(s.token_id as varchar), s.token_tag, '-'), ',' order by s.token_index)) as output
  from step s
  join request r on r.run_id = s.run_id and r.replica_id = s.replica_id and r.req_id = s.req_id
  where s.token_index is not null and r.output_token_ids_sha256 is null
  group by s.run_id, s.replica_id, s.req_id
),
known as (
  select r.*, coalesce(e.weights_sha256, e.model_id) as model_identity,
         coalesce(r.output_token_ids_sha256, p.output) as output
  from request r
  left join engine e on e.run_id = r.run_id and e.replica_id = r.replica_id
  left join spoken p on p.run_id = r.run_id and p.replica_id = r.replica_id and p.req_id = r.req_id
  where r.input_sha256 is not null
),
diverging as (
  select input_sha256, model_identity
  from known
  group by input_sha256, model_identity
  having count(distinct output) > 1
)
select k.input_sha256, k.model_identity, k.run_id, k.replica_id, k.req_id, k.external_req_id, k.arrival_ts, k.output,
       s.path as source_path, k.line
from known k
join diverging d on d.input_sha256 = k.input_sha256 and d.model_identity is not distinct from k.model_identity
left join source s on s.source_id = k.source_id
where k.output is not null
order by k.input_sha256, k.model_identity, k.arrival_ts, k.run_id, k.replica_id, k.req_id
