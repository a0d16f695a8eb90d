"""Where the work of running a job happens, one module each."""
