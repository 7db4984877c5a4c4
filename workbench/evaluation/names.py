"""Names that a command checks before anything heavy is imported."""

DETECTORS = ("clf64", "effnet-lite0", "randomconv", "pixels-pca64", "inception-2015", "dinov2")
