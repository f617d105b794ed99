"""Choose the fraction of a domain's prompts to hold out, so that a small domain still has some to measure."""

import math

from orchestrator.cli.init.looking import EXAMPLES_COUNTED, FoundDomain
from workers.config.data import DataConfig
from workers.data.tokenization import fit_example

_USUAL = 0.02
_ENOUGH = 16  # prompts are enough to measure a loss on
_MOST = 5  # at most one prompt in five, but at least one
_MAX_DIGITS = 12


def choose_eval_fraction(domain: FoundDomain, max_length: int) -> tuple[float, str]:
    """The fraction, and a comment on it for the configuration.

    The hashes of the prompts decide which of them a fraction takes, so the outcome is known if all rows were read.
    """
    usual = f"{_USUAL:.0%} of the prompts are held out".replace("%", " %")
    if not domain.is_whole or domain.num_rows_seen > EXAMPLES_COUNTED:
        return _USUAL, usual
    data = DataConfig(max_length=max_length, too_long="truncate")
    places = sorted(
        {prompt / 2.0**64 for prompt, tokens in domain.prompts if tokens is None or fit_example(tokens, data)}
    )
    if len(places) < 2:
        return _USUAL, f"{'one prompt' if places else 'no prompt'} cannot be split; give `eval` files"
    num_usual = sum(place < _USUAL for place in places)
    wanted = max(1, min(_ENOUGH, len(places) // _MOST))
    if wanted <= num_usual < len(places):
        return _USUAL, usual
    lower, upper = places[wanted - 1], places[wanted]
    for digits in range(2, _MAX_DIGITS + 1):
        fraction = (math.floor(lower * 10**digits) + 1) / 10**digits
        if lower < fraction <= upper:
            instead = "none" if num_usual == 0 else f"{num_usual}"
            return fraction, f"holds out {wanted} of the {len(places)} prompts; 2 % would hold out {instead}"
    return _USUAL, usual
