"""From one command to a job's processes: launchers, process group, stop signals."""
