"""One self-contained HTML page: maps whose cells are buttons, tables, plots, and items shown on demand by a script."""
