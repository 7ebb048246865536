"""One HTML file about a run, or about several side by side."""

FILE_NAME = "report.html"
