"""The training loop and what it is made of: step, checkpoints, launch; and the VAE trainer."""
