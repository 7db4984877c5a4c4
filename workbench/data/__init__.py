"""Images, codecs between pixels and latents, and encoded data sets."""
