"""What was measured: the document, its statistics, tables, charts and page."""
