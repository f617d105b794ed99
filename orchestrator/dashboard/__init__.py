"""A page on this machine that shows the runs below a folder while they go on, and hands what a person asks to them.

It reads the runs' public files and nothing else: it needs no Ray and no running run, and a run does not notice it.

    catalog.py    which runs there are, and a line about each
    states.py     whether a run is running
    snapshots.py  what a page shows at one moment, and what changed since the last
    pages.py      the three pages' snapshots: list, run, comparison; figures and tables are the report's own
    following.py  looks at the disk once for everybody who looks at the same page
    guard.py      who may ask: Host, token, headers
    controls.py   set, pin, release, pause, resume
    server.py     the routes
    remote.py     the same on the head of a cluster, as a job; job.py is what runs there

It listens on 127.0.0.1 only. Whoever can reach that may look; only the token's holder may change anything.
"""
