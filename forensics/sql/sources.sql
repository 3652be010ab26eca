-- Which files is this store built from, and what became of their rows?
select * from source order by source_id
