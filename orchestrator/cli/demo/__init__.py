"""`raymix demo`: generate a small base model and six domains, then train on them like on a user's own data."""

from pathlib import Path

from rich.console import Console

from orchestrator.cli.demo.files import demo_prompts, write_demo
from orchestrator.config.load import load_config
from orchestrator.views.console import redirect_output


def run_demo(folder: Path, console: Console) -> None:
    """Write the demo, train on it as `raymix run` does, and print the model's answers before and after training."""
    from orchestrator.cli.demo.answers import answers_table, generate_answers
    from orchestrator.sweeps.stages.driver import run

    with redirect_output(folder / "raymix.log") as quiet_console:
        quiet_console.print(f"generating the demo's domains and base model in {folder}", markup=False, highlight=False)
        config = load_config(write_demo(folder))
    run(config.plan, console)
    prompts = demo_prompts()
    asked = [prompt for _, prompt in prompts]
    with redirect_output(folder / "raymix.log"):
        before, after = (generate_answers(part, asked) for part in (Path(config.model.path), config.folder / "model"))
    console.print()
    console.print(answers_table(prompts, before, after))


__all__ = ["demo_prompts", "run_demo", "write_demo"]
