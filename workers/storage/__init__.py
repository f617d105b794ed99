"""Object storage: where runs and data are that no shared file system holds, each with a copy on the node that uses it.

    addresses   a URI, and the place of its copy in this node's cache; nothing else knows where copies are
    stores      the libraries that reach buckets
    client      objects by URI: put, get, list, delete; waits for a server that is gone; every error in one line
    mirror      a local file or folder and its object or objects: published, fetched, withdrawn
    data        what `train` and `eval` name, brought to this node
    checkpoints their files, and the records by which they are whole
    run_copy    the copy of a run on this node, made like the storage's when a driver or a rank begins
    reading     copies of many runs for one who only looks, such as the dashboard
    lines       files to which lines are appended, published again and again
    lease       one driver at a time

The rest of raymix works on the copies, as on any folder. It imports none of this but what it calls: `durable.py`
publishes what it writes, if it is a copy. A path that is no copy costs a comparison.
"""
