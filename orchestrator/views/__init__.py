"""Everything that a user sees: numbers as text, tables and live views for the terminal, pages."""
