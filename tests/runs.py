"""Real runs of the main job on small things made on the spot, started as a user starts them: by the command line."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from socket import SOCK_DGRAM
from typing import TYPE_CHECKING, Any

import psutil
import yaml

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

ROOT = Path(__file__).parents[1]
DOMAINS = ("add", "copy", "law")
_WORDS = ("court", "party", "clause", "claim", "notice", "term")


def write_run(folder: Path, **changes: Any) -> Path:
    """A configuration over three small domains and a tiny Llama; `changes` are dotted keys with `__` for the dot."""
    write_llama(folder / "base")
    for number, name in enumerate(DOMAINS):
        for part, count in (("train", 150 + 40 * number), ("eval", 24)):
            rows = _rows(name, count, random.Random(f"{name} {part}"))
            (folder / f"{name}-{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config: dict[str, Any] = {
        "name": "small",
        "output_dir": str(folder / "runs"),
        "model": {"path": str(folder / "base"), "dtype": "float32"},
        "domains": {
            name: {"train": str(folder / f"{name}-train.jsonl"), "eval": str(folder / f"{name}-eval.jsonl")}
            for name in DOMAINS
        },
        "data": {"max_length": 64, "log_samples": True},
        "mixing": {
            "type": "versatune",
            "initial": "uniform",
            "sigma": 0.7,
            "reference": {"add": 1.0, "copy": 2.5, "law": 0.5},
        },
        "training": {
            "max_steps": 30,
            "global_batch_size": 8,
            "micro_batch_size": 2,
            "learning_rate": 0.003,
            "checkpoint_every": 10,
            "deepspeed": {"zero_stage": 2},
        },
        "evaluation": {"every": 4, "max_rows": 8},
        "cluster": {"num_workers": 2},
    }
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        group = config
        for parent in parents:
            group = group.setdefault(parent, {})
        group[last] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def raymix(*arguments: str | Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        _command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def start(*arguments: str | Path, stdout: Path = Path(os.devnull)) -> subprocess.Popen[bytes]:
    """Start the command in a process group of its own; what it prints goes to a file."""
    with stdout.open("wb") as output:
        return subprocess.Popen(
            _command(*arguments), cwd=ROOT, start_new_session=True, stdout=output, stderr=subprocess.DEVNULL
        )


def wait_for(process: subprocess.Popen[bytes], is_time: Callable[[], bool], timeout_s: float = 240) -> None:
    """Wait for a moment of a run that is under way."""
    until = time.monotonic() + timeout_s
    while not is_time():
        assert process.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < until, "the moment never came"
        time.sleep(0.005)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL the process group, and Ray's workers, which have groups of their own and would live on for seconds."""
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(family, timeout=30)
    process.wait()


def ray_processes(driver: int, name: str) -> list[int]:
    """Ids of a driver's Ray processes of this name."""
    return [child.pid for child in psutil.Process(driver).children(recursive=True) if name in " ".join(child.cmdline())]


def listening(driver: int) -> list[tuple[str, str]]:
    """Address, and process with port, of whatever waits for others in a driver and the processes that it started."""
    found = []
    for process in [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            for socket in process.net_connections("inet"):
                if socket.status == psutil.CONN_LISTEN or (socket.type == SOCK_DGRAM and not socket.raddr):
                    found.append((socket.laddr.ip, f"{' '.join(process.cmdline())[:100]}: port {socket.laddr.port}"))
    return found


def num_lines(path: Path) -> int:
    """Lines of a file, 0 before it is there."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A .jsonl file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "orchestrator.cli.main", *map(str, arguments)]


def _rows(name: str, count: int, rng: random.Random) -> list[dict[str, Any]]:
    def turn(question: str, answer: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    rows = []
    for _ in range(count):
        a, b = rng.randrange(100), rng.randrange(100)
        words = " ".join(rng.choices(_WORDS, k=rng.randrange(2, 6)))
        questions = {"add": (f"{a}+{b}=", str(a + b)), "copy": (f"say {words}", words), "law": (f"law {a}", words)}
        rows.append(turn(*questions[name]))
    return rows


def write_byte_tokenizer(folder: Path) -> int:
    """A tokenizer of single bytes with BOS, EOS and PAD, and no chat template; the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<bos>", "<eos>", "<pad>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    return len(vocabulary)


def write_llama(folder: Path, seed: int = 0, **changes: Any) -> "LlamaForCausalLM":
    """A Llama of random weights, 50,000 of them unless `changes` to its configuration say otherwise, and a tokenizer of
    single bytes."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": write_byte_tokenizer(folder),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    model = LlamaForCausalLM(LlamaConfig(**(settings | changes)))
    model.save_pretrained(folder)
    return model
