"""Live training panels, the table of runs and the launch form. They read run folders and never touch a training."""
