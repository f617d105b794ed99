"""Knowledge detection: how is a base model's knowledge distributed over domains? (VersaTune, arXiv 2411.11266, sec. 1.)

    s_n ~ M( . | BOS), n = 1..N        texts from an empty prompt                        generation.py
    p_n = (P(d | s_n)) over d          a judge's answer about each                       judges/
    P_d = (1/N) sum_n p_n(d)           or counts of first choices, or corrected          quantification.py

in rounds, until no share changes by `tolerance` or more (rounds.py). The paper's hypothesis: fine-tuning that starts
with the mixture P gives better balanced results than one that contradicts it. `mixing.initial: detected` starts there.

From the paper: the texts, and the average in its figure. The released code counts first choices of a 72B chat model
over 10,000 texts in one pass, starts from EOS, and penalises repetition by 1.1; this corresponds to `estimate: counts`,
the `endpoint` judge and settings of `generation`. Ours: the correction, the intervals, the stopping rule, the
smoothing.

What can go wrong, and the remedies:

* The judge has systematic errors: it prefers some domains, and is unsure about a small model's incoherent text. So its
  answers are measured on texts by the same model whose domain is known (continuations of held-out openings of each
  domain, judged without the opening), and the estimate is corrected by them. All three estimates are reported.
* Continuations drift, and an opening may fit several domains: then the calibration labels are noisy, and the
  correction overshoots. `responses` in distribution.json shows the judge's mean answer by domain: domains whose rows
  are nearly the same cannot be told apart, and should be merged.
* Texts that belong to none of the domains are divided among them: add an "other" domain if the model knows much else.
* Unparsed answers are left out of every estimate, which is biased if one domain causes them: they are counted, and the
  most frequent answers are kept.
* Texts are cut at BOS and EOS and at `max_new_tokens`: shares are of documents, judged by their beginning.
* A share of 0 could never recover under the multiplicative rules, so shares are smoothed.
"""
