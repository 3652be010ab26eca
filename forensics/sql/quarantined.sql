-- What was set aside, where does it stand, and why?
select s.path as source_path, q.line, q."offset", q.reason, q.bytes, q.length, q.sha256
from quarantine q
left join source s on s.source_id = q.source_id
order by q.source_id, q.line, q."offset"
