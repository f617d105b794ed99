"""Studies of data composition: grids of amounts and strategies, each cell an ordinary run or a plan of stages.

    cells     grids x k x seeds, strategies x k x seeds         grid.py
    stages    what cells share is one training                  grid.py, by the digests of orchestrator/sweeps/stages
    estimate  tokens and hours, before anything is trained      estimate.py
    results   results.jsonl, results.csv: steps, rows, tokens, every domain's loss on every cell  results.py
    curves    loss over log2 k, single against mix, bootstrap intervals, crossing, Pareto set     series.py, curves.py
    page      the plots and tables                              figures.py, page.py

Everything is in <output_dir>/<name>/study. Where such studies fail is said on their page: see stages.CAVEATS.
"""
