"""The report of a run: `load_report` reads, findings compute, page, figures and text show."""
