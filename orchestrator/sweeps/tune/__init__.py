"""`raymix tune`: trains what a search (orchestrator/searches) proposes, and shows what was found.

driver         checks the settings and measures what all trials share; trains PBT, RegMix and searches of plugins, batch
               by batch, through the graph of runs
sampling       random search, Optuna and ASHA: by Ray Tune, which can end a trial early
trials         the run that a trial is, in a folder named by what its result depends on; search.json and best.yaml
page           the table and search.html
"""
