"""What is done with mixing settings is done by what their fields hold, whatever the fields are called."""

import json
import random
from pathlib import Path
from typing import Any, Literal

import pytest

from orchestrator.mixing import (
    MIXING_ALGORITHMS,
    Measured,
    MixingAlgorithm,
    MixingConfig,
    build_mixing_algorithm,
    initial_weights,
    resolve_mixing,
)
from orchestrator.mixing.base import Domain, given_shares
from orchestrator.mixing.needs import BaseDistribution, ReferenceLosses, TargetDomain
from tests.contract.test_mixing_algorithms import random_config
from workers.contracts import DomainFeedback

NAMES = ["math", "code"]
DOMAINS = [Domain("math", 10, 100), Domain("code", 30, 100)]


class OddConfig(MixingConfig):
    """Fields whose names nothing else has."""

    type: Literal["odd"] = "odd"
    where_from: BaseDistribution = "detected"
    as_good_as: ReferenceLosses | None = "computed"
    pupil: TargetDomain | None = None


class Odd(MixingAlgorithm[OddConfig]):
    """Starts from its base distribution."""

    def initial_weights(self) -> dict[str, float]:
        return given_shares(self.config.where_from, self.domains)

    def observe(self, feedback: DomainFeedback) -> None:
        return None


def settings(**given: Any) -> MixingConfig:
    return OddConfig.model_validate(given)


def test_an_algorithm_knows_its_settings_by_its_type_parameter() -> None:
    class Odder(Odd):
        pass

    assert Odd.config_class is Odder.config_class is OddConfig
    assert [kind.config_class.model_fields["type"].default for kind in MIXING_ALGORITHMS.values()] == list(
        MIXING_ALGORITHMS
    )


def test_needs_are_what_is_not_there_as_numbers(tmp_path: Path) -> None:
    needs = settings(pupil="code").needs
    assert (needs.distribution, needs.references, needs.target) == ("detected", "computed", "code")
    file = tmp_path / "shares.json"
    needs = settings(where_from=file, as_good_as={"math": 1, "code": 2}).needs
    assert (needs.distribution, needs.references, needs.target) == (file, {"math": 1, "code": 2}, None)
    needs = settings(where_from={"math": 0.5, "code": 0.5}, as_good_as=None).needs
    assert (needs.distribution, needs.references) == (None, None)


def test_the_needs_of_algorithms() -> None:
    def needs(**data: Any) -> Any:
        return MIXING_ALGORITHMS[data["type"]].config_class.model_validate(data).needs

    assert needs(type="versatune").references == "computed"
    assert needs(type="versatune", update="loss").references is None
    assert needs(type="versatune", initial="detected").distribution == "detected"
    assert needs(type="inverse", initial="uniform").distribution is None
    assert needs(type="fixed", shares="a.json").distribution == Path("a.json")
    assert needs(type="uniform").references is needs(type="uniform").distribution is None
    assert needs(type="target", target="x").target == needs(type="mixture_of_skills", target="x").target == "x"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"where_from": {"math": 1.0}}, r"mixing\.where_from: no value for \['code'\]"),
        ({"as_good_as": {"math": 1.0, "code": 1.0, "law": 1.0}}, r"mixing\.as_good_as: \['law'\] are not domains"),
        ({"pupil": "law"}, r"mixing\.pupil: 'law' is not a trained domain"),
    ],
)
def test_names_are_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**given).check_domains(NAMES)


def test_restricted_shares_keep_their_proportions_and_losses_their_values() -> None:
    given = settings(
        where_from={"math": 0.2, "code": 0.3, "law": 0.5}, as_good_as={"math": 1.0, "code": 2.0, "law": 3.0}
    )
    cut = given.restricted_to(["code", "math"]).model_dump()
    assert cut["where_from"] == pytest.approx({"code": 0.6, "math": 0.4}) and list(cut["where_from"]) == [
        "code",
        "math",
    ]
    assert cut["as_good_as"] == {"code": 2.0, "math": 1.0}
    assert settings().restricted_to(["code"]) == settings()


def test_files_are_named_found_and_checked(tmp_path: Path) -> None:
    shares, losses = tmp_path / "shares.json", tmp_path / "losses.json"
    shares.write_text(json.dumps({"shares": {"math": 0.25, "code": 0.75}}))
    losses.write_text(json.dumps({"loss_nats": {"math": 1.0, "code": -2.0}}))
    files = settings(where_from="shares.json", as_good_as="losses.json").with_files_in(tmp_path).files()
    assert [(file.key, file.path) for file in files] == [("where_from", shares), ("as_good_as", losses)]
    files[0].check(NAMES)
    assert files[0].kind.read(shares) == {"math": 0.25, "code": 0.75}
    with pytest.raises(ValueError, match=r"losses\.json: code: Input should be greater than or equal to 0"):
        files[1].check(NAMES)
    assert settings().files() == [] and settings().with_files_in(tmp_path) == settings()


def test_what_was_measured_takes_the_place_of_its_word_and_what_was_read_of_its_file() -> None:
    file, shares, losses = Path("a.json"), {"math": 0.25, "code": 0.75}, {"math": 1.0, "code": 2.0}
    found = Measured(distributions={"detected": shares}, references={file: losses})
    assert settings(as_good_as=file).with_measured(found) == settings(where_from=shares, as_good_as=losses)
    assert settings(where_from="b.json").with_measured(found) == settings(where_from="b.json")
    given = settings(where_from={"math": 1.0, "code": 0.0}, as_good_as={"math": 3.0, "code": 3.0})
    assert given.with_measured(found) == given
    unneeded = MIXING_ALGORITHMS["versatune"].config_class.model_validate({"type": "versatune", "update": "loss"})
    put_in = unneeded.with_measured(Measured(references={"computed": losses}))
    assert put_in.model_dump()["reference"] == losses, "trials are named so: their digests must stay"


def test_nothing_that_is_needed_stays_a_word() -> None:
    shares, losses = {"math": 0.25, "code": 0.75}, {"math": 1.0, "code": 2.0}
    found = Measured(distributions={"detected": shares}, references={"computed": losses})
    assert resolve_mixing(settings(), found, NAMES).config == settings(where_from=shares, as_good_as=losses)
    with pytest.raises(ValueError, match="losses by domain that computed stands for are not known"):
        resolve_mixing(settings(), Measured(distributions={"detected": shares}), NAMES)
    with pytest.raises(ValueError, match="shares by domain that detected stands for are not known"):
        resolve_mixing(settings(), Measured(references={"computed": losses}), NAMES)
    with pytest.raises(ValueError, match=r"mixing\.as_good_as: no value for \['law'\]"):
        resolve_mixing(settings(where_from={"math": 0.2, "code": 0.2, "law": 0.6}), found, [*NAMES, "law"])


def test_first_shares_are_known_before_the_references_are() -> None:
    config = MIXING_ALGORITHMS["versatune"].config_class.model_validate({"type": "versatune"})
    assert initial_weights(config, DOMAINS) == {"math": 0.25, "code": 0.75}
    assert initial_weights(config.model_copy(update={"reference": Path("a.json")}), DOMAINS)["code"] == 0.75
    with pytest.raises(ValueError, match="shares by domain that detected stands for"):
        initial_weights(config.model_copy(update={"initial": "detected"}), DOMAINS)


@pytest.mark.parametrize("kind", MIXING_ALGORITHMS)
def test_first_shares_do_not_depend_on_reference_losses(kind: str) -> None:
    for seed in range(20):
        choice = random.Random(seed)
        config = MIXING_ALGORITHMS[kind].config_class.model_validate(random_config(kind, NAMES, choice))
        given = config.needs.references
        if isinstance(given, dict):
            (key,) = (name for name, value in config if value == given)
            others = {name: loss + choice.random() for name, loss in given.items()}
            changed = config.model_copy(update={key: others})
            first, other = (build_mixing_algorithm(each, DOMAINS).initial_weights() for each in (config, changed))
            assert first == other == initial_weights(config, DOMAINS)
