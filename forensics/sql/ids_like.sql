-- Which requests, by the engine's id or the client's, have an id that begins with $req_id?
select distinct name as req_id
from (select req_id as name from request union all select external_req_id from request) names
where starts_with(name, $req_id)
order by name
limit 200
