"""How results are shown: the document, statistics, tables, charts and the page."""
