"""HTML pages and figures from the records of runs."""
