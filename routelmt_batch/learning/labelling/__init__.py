"""Labels a parallel corpus: both models translate it, and a metric scores both."""
