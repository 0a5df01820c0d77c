"""How good masks are on annotated pictures."""
