"""Exchange with other programs: models leave and come in as files, never as code."""
