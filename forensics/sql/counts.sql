-- How many rows of each kind are stored, requests as they were written?
select 'batch' as kind, count(*) as rows from batch
union all
select 'collective' as kind, count(*) as rows from collective
union all
select 'device' as kind, count(*) as rows from device
union all
select 'engine' as kind, count(*) as rows from engine
union all
select 'event' as kind, count(*) as rows from event
union all
select 'kernel' as kind, count(*) as rows from kernel
union all
select 'request' as kind, count(*) as rows from stated_request
union all
select 'step' as kind, count(*) as rows from step
union all
select 'verdict' as kind, count(*) as rows from verdict
order by kind
