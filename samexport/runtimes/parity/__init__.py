"""Does a file compute what PyTorch computes: golden cases, comparison, reports."""
