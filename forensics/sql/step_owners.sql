-- In which runs does a request of this id have steps?
select distinct run_id, replica_id
from step
where req_id = $req_id
order by run_id, replica_id
