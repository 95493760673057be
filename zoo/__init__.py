"""How the released weights were made: the logs of their runs, and the command that turns runs into a release."""
