"""All output: number formats, tables and live views for the terminal, HTML pages."""
