"""The report of a sweep: cells read, networks measured, pages and files written."""
