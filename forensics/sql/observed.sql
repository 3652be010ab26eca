-- What do the recorders say that they observe?
select distinct observes from engine
