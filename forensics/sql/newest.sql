-- When did the last request on record end?
select max(coalesce(finish_ts, arrival_ts, admission_ts, ts)) as newest from request having newest is not null
