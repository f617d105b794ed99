"""Where a run's numbers go while it runs, besides its own folder: always Prometheus, and the configured trackers.

    run folder -> RunRecords (a record a step) -> TensorBoard | MLflow | Weights & Biases
               -> PrometheusMetrics (the newest numbers) -> Ray's metrics endpoint

Threads of the driver, which has the user's credentials, read everything from the run's public files; workers and
controller are not involved. Every training has one tracked run, identified by the run's id, including stages of a plan
and the runs of sweeps. A run resumed after a kill continues in the same tracked run from the last step logged there; a
step that is trained again keeps its first log entry, whose numbers are the same for the same sequences and weights. A
tracker that fails is reported once in events.jsonl and dropped.

To add one: add its settings to the union, the names and the packages in orchestrator/config/tracking.py, a `Tracker` in
a new file, and a case to `open_tracker` (watch.py).
"""
