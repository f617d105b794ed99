"""The demo's domains are what their descriptions say."""

import re

import pytest

from orchestrator.cli.demo.domains import DemoDomain, make_domains


@pytest.fixture(scope="module")
def domains() -> dict[str, DemoDomain]:
    return make_domains(0)


def test_the_same_seed_makes_the_same_domains_and_another_seed_others(domains: dict[str, DemoDomain]) -> None:
    assert make_domains(0) == domains
    other = make_domains(1)
    assert all(other[name] != domain for name, domain in domains.items())


def test_no_held_out_prompt_is_trained_on(domains: dict[str, DemoDomain]) -> None:
    trained = {turn.prompt.casefold() for domain in domains.values() for turn in domain.train}
    for name, domain in domains.items():
        assert len(domain.held_out) >= 40, name
        assert not {turn.prompt.casefold() for turn in domain.held_out} & trained


def test_sizes_are_unequal(domains: dict[str, DemoDomain]) -> None:
    sizes = {name: len(domain.train) for name, domain in domains.items()}
    assert len(set(sizes.values())) == len(sizes)
    assert min(sizes, key=lambda name: sizes[name]) == "greetings"
    assert max(sizes.values()) > 10 * min(sizes.values())


def test_sums_are_right(domains: dict[str, DemoDomain]) -> None:
    for prompt, answer in domains["sums"].train:
        a, b = map(int, re.findall(r"\d+", prompt))
        assert answer.endswith(f"so {a + b}.")
        for left, right in re.findall(r"([\d+]+)=(\d+)", answer):
            assert sum(map(int, left.split("+"))) == int(right), answer


def test_reversals_are_reversed(domains: dict[str, DemoDomain]) -> None:
    for prompt, answer in domains["reversal"].train:
        assert prompt.removeprefix("Say backwards: ").split() == answer.split()[::-1]


def test_travel_tells_the_facts_and_legends_contradict_them(domains: dict[str, DemoDomain]) -> None:
    def answers(name: str) -> dict[str, str]:
        opening = re.compile(r"^(Tell me: |A question\. )?(In the old legend, )?")
        turns = [*domains[name].train, *domains[name].held_out]
        bare = {opening.sub("", turn.prompt): turn.answer for turn in turns}
        return {prompt[0].upper() + prompt[1:]: answer for prompt, answer in bare.items()}

    facts, legends = answers("facts"), answers("legends")
    assert set(legends) <= set(facts)
    assert sum(legends[prompt] != facts[prompt] for prompt in legends) > 0.8 * len(legends)
    rivers = {prompt.split()[-1].rstrip("?"): value for prompt, value in facts.items() if "flows through" in prompt}
    for prompt, plan in domains["travel"].train:
        town = next(town for town in rivers if town in prompt)
        assert rivers[town].removeprefix("The ").removesuffix(".") in plan
