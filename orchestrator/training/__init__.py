"""One run, from its prepared data to a trained model.

resolve, plan   its configuration -> ReadyRun: what has to be measured, the workers' plan, where it starts
driver          trains a ReadyRun: a worker group of the cluster, or this process as the only rank; it ends cleanly at a
                signal
"""
