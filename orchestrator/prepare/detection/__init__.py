"""Knowledge detection: which share of each domain does a base model know? (VersaTune, arXiv 2411.11266, section 1.)

    s_n ~ M( . | BOS), n = 1..N        texts from an empty prompt                        generation.py
    p_n = (P(d | s_n)) over d          a judge's answer about each                       judges/
    P_d = (1/N) sum_n p_n(d)           or counts of first choices, or corrected          quantification.py

in rounds, until no share changes by `tolerance` or more (rounds.py). The paper's hypothesis: fine-tuning whose mixture
starts at P gives better balanced results than one at odds with it. `mixing.initial: detected` starts there.

Certain of the paper: the texts, and the average in its figure. The released code counts first choices of a 72B chat
model over 10,000 texts in one pass, starts from EOS, and penalises repetition by 1.1; `estimate: counts`, the
`endpoint` judge and `generation` give that. Ours: the correction, the intervals, the stop, the
smoothing.

What can go wrong, and what is done about it:

* The judge is wrong in its own way: it over-calls some domains, and answers are unsure on a small model's broken text.
  So its answers are measured on text of the same model whose domain is known (continuations of held-out openings of
  each domain, judged without the opening), and the estimate is corrected by them. All three estimates are reported.
* A continuation drifts, and an opening may fit several domains: then the calibration labels are noisy, and the
  correction over-corrects. `responses` in distribution.json shows the judge's mean answer by domain: rows that hardly
  differ mean domains that cannot be told apart; merge these.
* Text of none of the domains is shared out among them: give an "other" domain if the model knows much else.
* Unparsed answers are left out of every estimate, which biases it if one domain causes them: they are counted, with
  what was said.
* Texts are cut at BOS and EOS and at `max_new_tokens`: shares are of documents, by their first page.
* A share of 0 could never recover under the multiplicative rules, so shares are smoothed.
"""
