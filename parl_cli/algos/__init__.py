"""One file per algorithm: the file reads as the paper's pseudo-code."""
