"""Where a run's numbers go while it runs, beside its own folder: Prometheus always, trackers as the run names them.

    run folder -> RunRecords (a record a step) -> TensorBoard | MLflow | Weights & Biases
               -> PrometheusMetrics (the newest numbers) -> Ray's metrics endpoint

All of it is read from the run's public files by threads of the driver, where the credentials of the person are too;
workers and controller know nothing of it. Every training has one tracked run, known by the run's id: the stages of a
plan and the trainings of searches, comparisons and studies as well. What goes on after a kill goes on in the same
tracked run from the last step that it holds; a step that is trained again stays as it was first written down, and the
same rows and weights give the same numbers. A tracker that fails is told of in events.jsonl, once, and dropped.

To add one: its settings in config.py, a `Tracker` in a file of its own, and its case in `open_tracker` (watch.py).
"""
