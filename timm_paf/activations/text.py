"""Tables as text."""
from rich.console import Console
from rich.table import Table

__all__ = ['table_text']


def table_text(table: Table) -> str:
    """Format a rich table as lines of up to 120 characters without colour, for every terminal."""
    console = Console(width=120, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
