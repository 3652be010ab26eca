-- Which request ids look like $req_id?
select distinct req_id, external_req_id, run_id, replica_id, arrival_ts,
       contains(req_id, $req_id) or coalesce(contains(external_req_id, $req_id), false) as contains_it,
       greatest(jaro_winkler_similarity(req_id, $req_id),
                coalesce(jaro_winkler_similarity(external_req_id, $req_id), 0)) as likeness
from request
where contains(req_id, $req_id) or contains(external_req_id, $req_id)
   or starts_with(req_id, left($req_id, 8)) or starts_with(external_req_id, left($req_id, 8))
order by contains_it desc, likeness desc, req_id, run_id, replica_id
limit 10
