"""How one actor steps its environments."""
