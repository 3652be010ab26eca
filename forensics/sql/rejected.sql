-- Why were rows set aside, how often, and where does the first of each reason stand?
with told as (
  select q.*, s.path as source_path,
         regexp_replace(regexp_replace(q.reason, ' at .*:[0-9]+: ', ': '), '[0-9][0-9.]*', 'N', 'g') as sort
  from quarantine q
  left join source s on s.source_id = q.source_id
)
select count(*) as rows, first(reason order by source_id, line) as reason, first(source_path order by source_id, line) as source_path,
       first(line order by source_id, line) as line, first(bytes order by source_id, line) as bytes
from told
group by sort
order by rows desc, reason
