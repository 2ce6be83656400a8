"""Tables as text."""
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ['table_text']


def table_text(table: 'Table') -> str:
    """Format a rich table as lines of up to 120 characters without colour, for every terminal."""
    from rich.console import Console  # here, because it would add a quarter to the time of `import timm_paf`
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
