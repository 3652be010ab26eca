-- Which sources were read from this path, oldest first?
select source_id, bytes, sha256 from source where path = $path order by source_id
