"""Settings of knowledge detection."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from workers.config.model import ModelConfig
from workers.settings import Settings


class GenerationConfig(Settings):
    """How the base model writes its texts; the defaults sample from the model's own distribution, unchanged."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Tokens of a text that are judged; a text may end earlier."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    """Texts that a worker writes at once; it affects the result, since random numbers are drawn batch by batch."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits; below 1, common domains look more common than they are."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: keep the most likely tokens up to this total probability; 1 keeps all."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Keep this many of the most likely tokens; 0 keeps all."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Divides the logits of tokens already used; 1 changes nothing, VersaTune's released code uses 1.1."""


class CalibrationConfig(Settings):
    """Texts by the model itself whose domain is known: continuations of held-out openings of each domain."""

    texts_per_domain: Annotated[int, Field(ge=0)] = 100
    """Continuations written for each domain; 0 disables the correction."""
    opening_tokens: Annotated[int, Field(ge=1)] = 24
    """Tokens of an opening. Neither continuations nor free texts are judged by their openings."""


class ClassifierJudgeConfig(Settings):
    """A text classifier fitted on the domains' training rows: works offline, takes less than a minute on a CPU."""

    type: Literal["classifier"] = "classifier"
    """A scikit-learn text classifier."""
    max_rows: Annotated[int, Field(ge=10)] = 1000
    """Training rows of each domain to fit on, chosen by hash."""


class LikelihoodJudgeConfig(Settings):
    """A local language model, asked which domain's name is the most likely continuation of the text."""

    type: Literal["likelihood"] = "likelihood"
    """Mean log-probability of the tokens of each domain's name, softmax over the domains."""
    model: ModelConfig
    """The judging model; use an instruction-tuned one."""
    max_text_tokens: Annotated[int, Field(ge=8)] = 512
    """Tokens of a text that the model is shown."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Texts per forward pass."""


class EndpointJudgeConfig(Settings):
    """A model behind an OpenAI-compatible chat endpoint, asked for the one domain that a text is about."""

    type: Literal["endpoint"] = "endpoint"
    """POST {base_url}/chat/completions."""
    base_url: str
    """For example https://api.openai.com/v1 or http://localhost:8000/v1."""
    model: Annotated[str, Field(min_length=1)]
    """The model's name at the endpoint."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; null for an endpoint without one. The key itself is never stored."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests in flight at once."""
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 6
    """Attempts per request while the server is busy or failing, with exponential backoff."""
    max_pause_seconds: Annotated[float, Field(ge=0)] = 60.0
    """Longest pause between two attempts."""
    timeout_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Time limit for one attempt."""
    max_text_characters: Annotated[int, Field(ge=100)] = 4000
    """Characters of a text that are sent."""
    max_answer_tokens: Annotated[int, Field(ge=1)] = 64
    """Token limit of an answer; a reasoning model needs more."""
    usd_per_million_input_tokens: Annotated[float, Field(ge=0)] = 0.0
    """Price, used to report the total cost."""
    usd_per_million_output_tokens: Annotated[float, Field(ge=0)] = 0.0
    """Price, used to report the total cost."""

    @field_validator("base_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        try:
            parts = urlsplit(value)
            has_host = bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            has_host = False
        if not has_host or parts.scheme not in ("http", "https"):
            raise ValueError("is not an http:// or https:// address; write e.g. http://localhost:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "has credentials, a query or a fragment; put the key in the environment variable that api_key_env names"
            )
        return value.rstrip("/")


AnyJudgeConfig = Annotated[
    ClassifierJudgeConfig | LikelihoodJudgeConfig | EndpointJudgeConfig, Field(discriminator="type")
]


class DetectionConfig(Settings):
    """How the base model's knowledge distribution is detected."""

    judge: AnyJudgeConfig = ClassifierJudgeConfig()
    """Decides which domain a text belongs to."""
    generation: GenerationConfig = GenerationConfig()
    """How the model writes its texts."""
    calibration: CalibrationConfig = CalibrationConfig()
    """The texts on which the judge's errors are measured."""
    estimate: Literal["corrected", "average", "counts"] = "corrected"
    """The estimate to use as shares: `corrected` for the judge's errors; `average` of its probabilities, as in the
    paper's figure; `counts` of its first choices, as in the paper's released code. All three are reported."""
    texts_per_round: Annotated[int, Field(ge=1)] = 1000
    """Texts written and judged between two estimates."""
    max_texts: Annotated[int, Field(ge=1)] = 10_000
    """Maximum number of texts."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Stop when no share changed by this much or more in a round."""
    smoothing: Annotated[float, Field(ge=0)] = 1.0
    """Texts added to every domain, so that no share is 0, which the multiplicative rules could never raise."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Probability that an interval covers the share."""
    num_bootstrap: Annotated[int, Field(ge=10)] = 200
    """Bootstrap resamples of texts and calibration texts behind the intervals."""

    @model_validator(mode="after")
    def _correction_needs_calibration(self) -> Self:
        if self.estimate == "corrected" and self.calibration.texts_per_domain == 0:
            raise ValueError(
                "estimate: corrected needs calibration texts, but calibration.texts_per_domain is 0; set it to 100, or "
                "use estimate: average"
            )
        return self
