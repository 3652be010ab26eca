"""A seeded simulator of a tensor-parallel serving cluster with causes that we plant, to score the analyser.

It follows physics and the public words of the execution contract; it imports nothing of `forensics` and shares no
threshold with it. One thing is told in one file:

    conditions   what the world does to a replica, and since when: the only place where a cause is planted
    traffic      who asks for what and when, and how a gateway shapes it
    memory       KV blocks, what pins leave of the device, the largest free block
    device       tactic, precision path and compute time of each rank
    fabric       collectives: who waits for whom, alpha + bytes / bandwidth
    scheduler    admission, limits that answer to stretched steps, paging, preemption
    replica      the discrete-event loop: launches, one after the other
    numerics     logits as a function of (input, position, arithmetic so far)
    records      what the contract lines say
    recorder     who writes them: writers, clocks that err, lines that get lost
    causes       the catalogue: every cause code, what is planted for it, how strong
    world        one replica under some plants, and what it answers
    truth        which facts of the launches the cause made different
    incident     two arms, the log of both, and the truth by intervention
"""
