"""The diffusion process as functions of tensors: paths, time schedules, guidance, tokens, random numbers, sampling."""
