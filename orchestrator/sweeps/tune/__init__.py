"""`raymix tune`: trains what a search (orchestrator/searches) proposes, and shows what was found.

driver, preparing     the search's settings checked, and what all trials share
trials                the run that a trial is, in a folder named by what its result depends on
batches               PBT, RegMix and searches of plugins: batch by batch, through the graph of runs
sampling, trial       random search, Optuna and ASHA: by Ray Tune, which can end a trial early
results, page         search.json and best.yaml; the table and search.html
"""
