"""Everything that says Ray: a session, its resources, tasks, and jobs."""
