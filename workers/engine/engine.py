"""The only engine: DeepSpeed ZeRO 0 to 3, on GPU (NCCL) and CPU (gloo) alike.

The caller initialises `torch.distributed`, which defines rank and world size. A step is one `forward_backward` on this
rank's slice of the global batch, then one `step`. Shapes: B rows (sequences), L tokens, N loss tokens, D domains.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from workers.config.model import ModelConfig
from workers.config.training import TrainingConfig
from workers.engine.collectives import max_over_ranks, on_every_rank
from workers.engine.deepspeed_config import build_deepspeed_config
from workers.engine.deepspeed_import import import_deepspeed
from workers.engine.optimizer import CheckedUpdate, WideGradients, parameter_groups
from workers.engine.router_loss import find_router_loss
from workers.engine.trainable import load_trainable
from workers.engine.zero_state import stepped_tensors
from workers.model.attention import attention_kernels
from workers.model.base_config import load_text_config
from workers.model.forward_pass import ForwardPass, idle_pass, passes_over
from workers.model.isolation import Isolation
from workers.model.kernel_choice import prove_kernel, prove_liger, prove_slices
from workers.model.loading import find_decoder
from workers.model.packed_forward import PackedForward
from workers.model.slices import Slices
from workers.strategies import STRATEGIES
from workers.strategy import Attachment, Fragment

if TYPE_CHECKING:
    from workers.data.batches import Batch


class Engine:
    """A model in training; every rank makes the same calls.

    Dropout is a function of (seed, step, rank), so that resuming needs no random state.
    """

    def __init__(self, deepspeed_engine: Any, model_config: ModelConfig, training: TrainingConfig, seed: int) -> None:
        self.deepspeed = deepspeed_engine
        self.module = deepspeed_engine.module
        self.optimizer = deepspeed_engine.optimizer
        self.device = torch.device(deepspeed_engine.device)
        self.zero_stage = int(deepspeed_engine.zero_optimization_stage())
        self.model_config = model_config
        self.training = training
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        num_slices = training.sequence_parallel
        self.slices = Slices(num_slices) if num_slices > 1 else None
        self.data_rank, self.num_data_ranks = self.rank // num_slices, self.world_size // num_slices
        """Which part of a step's rows this rank trains on, and of how many; ranks that share rows have the same."""
        self._seed = seed
        self._wide_gradients: WideGradients | None = None
        self._checked_update: CheckedUpdate | None = None
        if self.zero_stage == 0 and model_config.dtype == "float32":
            # Before the strategy attaches: it changes a gradient after clipping, as at the other stages.
            self._checked_update = CheckedUpdate(self.module, self.optimizer, training.max_grad_norm)
        elif self.zero_stage == 0 and training.deepspeed.gradient_dtype == "float32":
            self._wide_gradients = WideGradients(self.module)
        attach = getattr(STRATEGIES[training.strategy.type], "attach", None)
        self.attachment: Attachment | None = attach(self, training.strategy) if attach else None
        self.router_loss = find_router_loss(base_model(self.module)) if training.router_loss else None
        self.router_loss_sum = 0.0
        """This rank's part of the last step's router loss; the step's is the sum over the ranks."""
        self.before_update: Callable[[], None] = lambda: None
        """Called before a step changes a master or a moment: a checkpoint may still be copying them."""
        self.packed = PackedForward(deepspeed_engine, base_model(self.module), self.device, slices=self.slices)

    @classmethod
    def build(cls, model_config: ModelConfig, training: TrainingConfig, seed: int = 0) -> Self:
        """Load the model, apply the training strategy, and hand both to DeepSpeed; a collective."""
        deepspeed = import_deepspeed()
        hidden_size = load_text_config(model_config).hidden_size
        config = build_deepspeed_config(training, model_config, dist.get_world_size(), hidden_size)
        torch.manual_seed(seed)  # new parameters (adapters) start equal on every rank and in every attempt
        model = load_trainable(model_config, training, config)
        on_gpu = torch.cuda.is_available()
        optimizer = torch.optim.AdamW(
            parameter_groups(model, training.weight_decay),
            lr=0.0,  # set at every step
            betas=training.betas,
            eps=training.epsilon,
            fused=on_gpu,
        )
        with redirect_stdout(None):  # one of its optimizers prints memory use
            # Slices need no word to it: it adds up gradients over all ranks, whether these have other rows or columns.
            # Told of them (mpu), it would divide by the number of slices at stage 3, and at the others not.
            engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        _forget_initial_steps(engine.optimizer)
        return cls(engine, model_config, training, seed)

    def prove_isolation(self, row: "Batch | None") -> Isolation:
        """Choose the kernels and how packed examples are kept apart, using the same row on all ranks; a collective.
        PackingError if no way of packing gives this model correct losses; ValueError if a requested kernel does not."""
        over_ranks = partial(max_over_ranks, device=self.device)
        if self.model_config.liger:
            prove_liger(self.packed, row, over_ranks)
        if self.slices:
            prove_slices(self.packed, row, over_ranks)
        return prove_kernel(self.packed, row, self._kernels(), over_ranks)

    def forward_backward(self, batch: "Batch", num_domains: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Accumulate the gradient of this rank's rows, or slices of them.

        Returns their loss sums (nats) and loss tokens by domain, which add up over all ranks.
        """
        torch.manual_seed(int(np.random.SeedSequence([self._seed, batch.step, self.rank]).generate_state(1)[0]))
        # The step's loss is the mean over the loss tokens of the global batch, so every pass on every rank divides by
        # their number, which the schedule knows in advance: dividing by the tokens of a pass or a rank would make a
        # token's weight depend on its neighbours. DeepSpeed averages gradients over the ranks; world_size undoes it.
        scale = self.world_size / batch.global_loss_tokens

        def train_on(one_pass: ForwardPass) -> torch.Tensor:
            nats_N, router_loss = self._forward_with_routers(one_pass, batch.global_loss_tokens)
            loss = nats_N.sum() * scale + router_loss * self.world_size
            self.deepspeed.backward(loss, scale_wrt_gas=False)
            self.router_loss_sum += float(router_loss)
            return nats_N

        self.module.train()
        self.router_loss_sum = 0.0
        return self._sum_by_domain(batch, num_domains, train_on)

    @torch.no_grad()
    def forward(self, batch: "Batch", num_domains: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss sums (nats) and loss tokens by domain of this rank's rows, without gradients or dropout."""
        self.module.eval()
        sums_D, counts_D = self._sum_by_domain(batch, num_domains, self.packed.nats)
        return self.packed.sum_over_slices(sums_D), self.packed.sum_over_slices(counts_D)

    @torch.no_grad()
    def forward_examples(self, batch: "Batch", example_BL: np.ndarray, num_examples: int) -> torch.Tensor:
        """Loss sums (nats) by example, (num_examples,), of this rank's rows, or slices of them, without gradients or
        dropout; they add up over all ranks. `example_BL` is the example of each token; every target has one.
        """
        self.module.eval()
        loss_sum_E = torch.zeros(num_examples, dtype=torch.float64, device=self.device)
        for one_pass in self._passes(batch, self.training.micro_batch_size):
            example_N = example_BL.ravel()[one_pass.target_origin_N]
            loss_sum_E.index_add_(0, self.packed.to_device(example_N), self.packed.nats(one_pass).double())
        return loss_sum_E

    @torch.no_grad()
    def forward_tokens(self, batch: "Batch") -> tuple[torch.Tensor, torch.Tensor]:
        """Nats of each loss token, (N,) in float32, row by row, and the last hidden states, (B, L, hidden size).

        One forward pass over the batch, at most a micro batch, without gradients or dropout. The hidden states are
        those after the final norm; they are undefined for padding.
        """
        self.module.eval()
        passes = self._passes(batch, len(batch.domain_B), cut=False)  # which may try the model on other tokens
        hidden: list[torch.Tensor] = []
        decoder = find_decoder(base_model(self.module))
        watch = decoder.register_forward_hook(lambda module, given, output: hidden.append(output.last_hidden_state))
        try:
            nats = torch.cat([self.packed.nats(one_pass) for one_pass in passes])
        finally:
            watch.remove()
        targets = np.concatenate([one_pass.target_origin_N for one_pass in passes])
        nats_T = nats.new_zeros(batch.input_ids_BL.size).index_copy_(0, self.packed.to_device(targets), nats)
        in_order = self.packed.to_device(np.flatnonzero(np.pad(batch.loss_mask_BL[:, 1:], ((0, 0), (1, 0)))))
        hidden_TH = hidden[0].new_zeros(batch.input_ids_BL.size, hidden[0].shape[-1])
        for one_pass, hidden_SLH in zip(passes, hidden, strict=True):
            places = one_pass.origin_SL.ravel()
            read = self.packed.to_device(np.flatnonzero(places >= 0))
            hidden_TH[self.packed.to_device(places[places >= 0])] = hidden_SLH.flatten(0, 1)[read]
        hidden_BLH = self.packed.sum_over_slices(hidden_TH).view(*batch.input_ids_BL.shape, -1)
        return self.packed.sum_over_slices(nats_T)[in_order], hidden_BLH

    def step(self, learning_rate: float) -> float:
        """Update the weights; returns the norm of the global gradient before clipping.

        If the norm is not finite, no weight, master or moment was changed.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self._wide_gradients:
            self._wide_gradients.complete()
        self.before_update()
        self.deepspeed.step()
        return self._checked_update.norm if self._checked_update else float(self.deepspeed.get_global_grad_norm())

    def trainable_parameters(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def stepped_tensors(self) -> Iterator[tuple[torch.Tensor, list[Fragment]]]:
        """Each tensor that this rank's inner optimizer steps, with its fragments; the rest of it is padding."""
        return stepped_tensors(self)

    def destroy(self) -> None:
        """Free DeepSpeed's state, so that another engine can be built in this process."""
        with redirect_stdout(None):
            self.deepspeed.destroy()
        if self.slices:
            self.slices.close()
        del self.deepspeed, self.module, self.optimizer, self.attachment
        gc.collect()

    def _kernels(self) -> list[str]:
        """The attention kernels that all ranks could use."""
        model, on_gpu = self.packed.model, self.device.type == "cuda"
        mine = on_every_rank(lambda: attention_kernels(self.model_config, type(model), model.config, on_gpu))
        of_ranks: list[list[str]] = [[]] * self.world_size
        dist.all_gather_object(of_ranks, mine)
        return [kernel for kernel in mine if all(kernel in theirs for theirs in of_ranks)]

    def _sum_by_domain(
        self, batch: "Batch", num_domains: int, compute_nats: Callable[[ForwardPass], torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss_sum_D = torch.zeros(num_domains, dtype=torch.float64, device=self.device)
        num_tokens_D = np.zeros(num_domains, dtype=np.int64)
        for one_pass in self._passes(batch, self.training.micro_batch_size):
            nats_N = compute_nats(one_pass)
            loss_sum_D.index_add_(0, self.packed.to_device(one_pass.domain_N), nats_N.detach().double())
            num_tokens_D += np.bincount(one_pass.domain_N, minlength=num_domains)
        return loss_sum_D, self.packed.to_device(num_tokens_D)

    def _forward_with_routers(self, one_pass: ForwardPass, global_loss_tokens: int) -> tuple[torch.Tensor, Any]:
        """Nats of each target, and the pass's part of the step's router loss, weighted by its targets."""
        if self.router_loss is None:
            return self.packed.nats(one_pass), 0.0
        with self.router_loss.watching():
            nats_N = self.packed.nats(one_pass)
            # Without targets the weight is 0, but the term must exist: under ZeRO-3 all ranks go backward through the
            # same modules and wait for each other.
            is_used_SL = one_pass.is_used_SL if len(nats_N) else np.ones_like(one_pass.is_used_SL)
            part = self.router_loss.value(is_used_SL) * (len(nats_N) / global_loss_tokens)
        return nats_N, part

    def _passes(self, batch: "Batch", rows_per_pass: int, cut: bool = True) -> list[ForwardPass]:
        passes = list(passes_over(batch, self.packed.way, rows_per_pass, cut=cut))
        if self.packed.way == "separate":
            # Ranks need different numbers of passes for single examples. Under ZeRO-3 every pass gathers parameters
            # from all ranks, so a rank that is done makes idle passes: without them the others would wait forever.
            passes += [idle_pass()] * (int(max_over_ranks(len(passes), self.device)) - len(passes))
        return self.packed.plan(passes, self._on_any_rank if self.zero_stage == 3 else bool)

    def _on_any_rank(self, is_so: bool) -> bool:
        return bool(max_over_ranks(is_so, self.device))


def base_model(module: Any) -> PreTrainedModel:
    """The transformers model, without the peft wrapper."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def _forget_initial_steps(optimizer: Any) -> None:
    # DeepSpeed's bf16 optimizer of stage 0 steps once on zero gradients when created; Adam would count that step.
    for state in getattr(optimizer, "optimizer", optimizer).state.values():
        if "step" in state:
            state["step"].zero_()
