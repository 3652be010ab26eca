-- Is this verdict on file?
select * from verdict where id = $id
