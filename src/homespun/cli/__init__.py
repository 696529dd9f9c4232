"""The command line: one small file per verb. Only this room prints and exits; `--help` imports nothing heavy."""
