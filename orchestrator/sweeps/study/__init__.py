"""Studies of data composition: grids of amounts and strategies, each cell an ordinary run or a plan of stages.

    grid      cells: grids x k x seeds, strategies x k x seeds; what they share is one training, by its stage's digest
    driver    tokens and hours, before anything is trained; then the trainings
    results   results.jsonl, results.csv: steps, rows, tokens, every domain's loss on every cell
    curves    loss over log2 k, single against mix, bootstrap intervals, crossing, Pareto set
    page      the plots and tables

Everything is in <output_dir>/<name>/study. Where such studies fail is said on their page: see stages.CAVEATS.
"""
