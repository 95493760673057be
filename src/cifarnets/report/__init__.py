"""Pages that one can look at: a run as a report, and a model that runs in the browser."""
