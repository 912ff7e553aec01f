"""A page that asks a bundle in the browser, and the server for it: `python -m export.web BUNDLE`."""
