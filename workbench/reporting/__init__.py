"""From runs to figures, tables and reports."""
