"""The report: tables, plots and verdict, as Markdown, HTML and JSON."""
