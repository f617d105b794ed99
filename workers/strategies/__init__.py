"""Which parameters move: one file per training strategy.

To add one, write a file with a config class (its `type` names it; `config_class` is that class) and an
`apply(model, config)` function that freezes or wraps the model, and give it a line in the table (`table.py`). Neither
the loop nor the engine changes. A strategy in a package of its own is an entry point: docs/extending.md.

Files here import torch and peft inside their functions, so that a configuration is checked without them.
"""

from typing import TYPE_CHECKING, Any

from workers.strategies.base import Attachment, Strategy, StrategySettings

if TYPE_CHECKING:
    from workers.strategies.table import STRATEGIES, StrategyConfig

__all__ = ["STRATEGIES", "Attachment", "Strategy", "StrategyConfig", "StrategySettings"]


def __getattr__(name: str) -> Any:
    # Not imported above: the table imports plugins, whose modules import this package.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from workers.strategies import table

    return getattr(table, name)
