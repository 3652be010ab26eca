-- Which source is this file, by what it has grown from or by its content?
select * from source
where source_id = $source_id or sha256 = $sha256
order by source_id is distinct from $source_id, source_id
limit 1
