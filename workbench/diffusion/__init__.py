"""The diffusion process as functions of tensors: paths, times, guidance, tokens, random numbers, sampling."""
