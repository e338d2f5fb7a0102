"""How well objects show what was asked for: CLIP similarity, CLIP R-Precision and CLIP-FID (see README.md here)."""

PROTOCOLS = ("dreampropeller", "scaledreamer")
