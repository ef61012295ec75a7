"""The report of a run, a cross-validation or several runs: one HTML page that needs nothing else, no network either.

`subject` reads a run's folder, `sections` turns it into the page's sections, `page` renders them with the templates,
styles and scripts beside it. A new section is a function in `sections.SECTIONS` and a template of that name.
"""
