"""A run on disk: its files, its summary and verdict, and who may write to its folder.

folder, step_table                    RunFolder: all public files of a run, read while they are written
records, benchmark_record, failure    what is in its files: events, summary.json, data.json, tasks.json
lock                                  one driver at a time, and one configuration once something was trained
summary, verdict                      what came of the run as a whole, and of each domain
loss_errors                           standard errors of held-out losses and of their changes
"""
