"""Sets of runs: stages, references, comparisons, studies, searches."""
