"""Reports: of one run, and of many compared (`python -m kdih.report`)."""
