"""Several algorithms, or any other variants of a run, side by side: same base model, same budget, same seeds.

    driver      variants, each a change to the run's configuration, one run for each seed
    results     every run's held-out losses, tokens and times; means over seeds, and differences paired by seed
    page        the table for the terminal, the page and the CSV file

Runs are in <output_dir>/<name>-compare/<label>-seed<seed>, beside compare.json, compare.csv and compare.html.

Where it fails: see CAVEATS, which are on every page. What raymix does about it: intervals beside every mean,
differences paired by seed, the tokens of every variant, and `training.max_tokens`.
"""

CAVEATS = (
    "A few seeds give wide intervals, and a difference smaller than its interval is no result.",
    "Equal steps are not equal tokens where domains have rows of different lengths; training.max_tokens in place of "
    "max_steps gives every variant the same number.",
    "Losses are held-out losses: they tell what is learned and forgotten, not whether answers are right.",
)
"""What a reader of a comparison must know."""
