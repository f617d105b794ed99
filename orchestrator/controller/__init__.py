"""The mixing controller: core.py decides (pure), journal.py makes it durable, actor.py makes it reachable."""
