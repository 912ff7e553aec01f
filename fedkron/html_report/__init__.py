"""A run, or several side by side, as one HTML page that needs no network."""

from fedkron.html_report.page import page, write_page

__all__ = ["page", "write_page"]
