"""Ray for everyone else: sessions, resources, tasks and jobs."""
