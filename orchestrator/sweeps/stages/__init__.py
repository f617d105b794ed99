"""Ordered plans of stages, after "How Abilities in Large Language Models are Affected by Supervised Fine-tuning Data
Composition" (DMT; Dong et al. 2023, arXiv 2310.05492).

S(start, data) is one fine-tuning pass; sub(D, k) a random subset of max(1, round(k * n)) examples of D, the smaller one
part of the larger. With specialised sets D_1 .. D_n and general sets G:

    multi_task          M = S(base, all)
    sequential          M = S(.. S(S(base, D_1), D_2) .., D_n)
    mixed_sequential    M = S(S(base, D_1 + .. + D_n), G)
    dmt                 M1 = S(base, D_1 + .. + D_n)
                        M  = S(M1, G + sub(D_1, k_1) + .. + sub(D_n, k_n))

k is a fraction of EACH specialised set, not a ratio to the general one: at k = 1/256 the replay is well under 1 % of
stage 2. k = 0 is mixed_sequential, k = 1/256 the paper's choice; other k trade general for specialised ability.

Certain: the strategies and k (section 2 and table 3 of the paper; 3 epochs a pass, the last one kept). The paper does
not say: what becomes of the optimizer between stages (here: only weights are carried, a new AdamW and schedule for
each stage; `optimizer: kept` carries the moments), which rows are replayed (here: a fixed seeded subset), how sets are
mixed (here: the run's mixing algorithm; `mixing: {type: proportional}` is the paper's plain concatenation).

    stage       an ordinary run in <output_dir>/stages/<name>-<digest>; the digest covers its settings, the fingerprints
                of its token stores and the digest of the stage it starts from: plans that share a stage train it once
    plan        <output_dir>/<name>: stages.json (the chain), model/ (of the last stage), summary.json, report.html

Every domain of the run is measured at every stage, also those that a stage does not train on: what is forgotten shows.

Where it fails: see CAVEATS, which are on every page that shows a plan. What raymix does about it: budgets in steps
or tokens beside epochs; steps, rows and tokens in every result; trade-offs with their Pareto set, not one winner.
"""

CAVEATS = (
    "With a fixed number of epochs, less data also means fewer optimizer steps: amount and steps are confounded, and a "
    "mixture takes more steps than each of its parts alone. Compare again at equal steps (max_steps) or equal tokens "
    "(max_tokens) before believing an effect of the amount.",
    "DMT moves along a trade-off and does not dominate: in the paper its maths stays behind multi-task training at 7B "
    "(by 5.6 points) and 13B (by 4.5), and a larger k buys specialised ability with general ability. Which k is best "
    "depends on what each ability is worth to you.",
    "Differences of about one standard error are no result; repeat with other seeds. Losses are held-out losses: they "
    "tell what is forgotten, not whether answers are right.",
)
"""What a reader of a plan's or a study's results must know (paper, sections 3.2 to 3.5, and its tables 1 to 3)."""
