"""`equilibria models`: the trained models that come with the package."""

import json as json_format

from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from equilibria.errors import UserError
from equilibria.inference.trained import trained_models


def models(name: str | None = None, /, *, json: bool = False) -> int:
    """List the trained models that come with the package, or show the card of one.

    Every command that takes a run takes their names: `equilibria generate demo --prompt "The"`.

    Args:
        name: the model whose card is shown.
        json: print names and descriptions, or a name and its card, as one JSON object.
    """
    found = trained_models()
    if name is not None:
        if name not in found:
            raise UserError(f"there is no model {name} in the package; it has {' and '.join(found)}")
        print(json_format.dumps({name: found[name].card})) if json else Console().print(Markdown(found[name].card))
    elif json:
        print(json_format.dumps({key: model.title for key, model in found.items()}))
    else:
        table = Table.grid(padding=(0, 2))
        for key, model in found.items():
            table.add_row(Text(key, style="bold"), Text(model.title))
        Console().print(table)
    return 0
