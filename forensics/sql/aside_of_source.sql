-- Which lines of this source were set aside?
select line from quarantine where source_id = $source_id
