"""The frozen base of QLoRA (Dettmers et al. 2023, arXiv 2305.14314): its linear matrices in 4 bits, by bitsandbytes.

A matrix is divided into blocks of 64 weights, each with a scale; a weight is one of sixteen values (NF4), and the
scales are quantised again. In a pass, one matrix at a time is computed back to the model's precision. Matrices whose
rows are not whole blocks keep their precision: on the CPU, bitsandbytes 0.50 computes wrong weights from them.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from workers.strategies.lora.matrices import find_matrices, plain_name

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_BLOCK = 64
BYTES_PER_WEIGHT = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""Four bits, a scale of one byte for each block of 64, and for each 256 scales one in float32."""


def why_not() -> str | None:
    """Why no matrix can be quantised in this environment, or None."""
    if find_spec("bitsandbytes") is None:
        return "the package bitsandbytes is not installed; pip install 'raymix[qlora]'"
    return None


def quantise(model: "PreTrainedModel", kept: list[str]) -> None:
    """Replace the linear layers of the decoder, except modules named in `kept`, those whose weights the model reads
    directly, and those with inputs that are no multiple of 64. The weights are converted at once, on the GPU if there
    is one, and stay there.

    Raises:
        ValueError: bitsandbytes is not installed, or the model has no such layer.
    """
    if reason := why_not():
        raise ValueError(f"training.strategy.use_qlora: {reason}")
    import torch
    from bitsandbytes.nn import Linear4bit, Params4bit

    in_kept = [f".{name}." for name in kept]
    names = [
        matrix.module
        for matrix in find_matrices(model)
        if matrix.is_linear
        and matrix.refusal is None
        and type(found := model.get_submodule(matrix.module)) is torch.nn.Linear
        and found.in_features % _BLOCK == 0
        and not any(name in f".{matrix.name}." for name in in_kept)
    ]
    if not names:
        raise ValueError(
            "training.strategy.use_qlora: this model has no plain linear layer with a multiple of 64 inputs, whose "
            "weights could be stored in 4 bits; set it to false"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name in names:
        layer: Any = model.get_submodule(name)
        with torch.device("meta"):
            quantised: Any = Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                compute_dtype=model.dtype,
                compress_statistics=True,
                quant_type="nf4",
            )
        weight: Any = Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=quantised
        )
        quantised.weight = weight if weight.is_meta else weight.to(device)
        quantised.bias = layer.bias
        # On some CPUs an evaluation would repack the weights, which training then cannot read.
        quantised.support_avx512bf16_for_cpu = False
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, quantised)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]  # peft asks for it


def quantised_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """The quantised layers of a model, wrapped by peft or not, by their names in the base model."""
    for name, module in model.named_modules():
        if type(module).__name__ == "Linear4bit" and not hasattr(module, "base_layer"):  # peft's has the same name
            yield plain_name(name), module


def computed_weights(model: Any) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Name in the base model, and on the CPU the weights with which a quantised layer computes."""
    for name, layer in quantised_layers(model):
        from bitsandbytes.functional import dequantize_4bit

        yield f"{name}.weight", dequantize_4bit(layer.weight.data, layer.weight.quant_state).cpu()
