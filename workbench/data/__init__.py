"""Images, VAEs between pixels and latents, and encoded data sets."""
