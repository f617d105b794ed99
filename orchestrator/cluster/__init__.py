"""Everything that uses Ray: sessions, resources, tasks and jobs."""
