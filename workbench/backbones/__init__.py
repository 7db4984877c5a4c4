"""Diffusion transformers, one file each: `<name>.py` exports `Backbone`, a `base.TransformerBackbone`."""
