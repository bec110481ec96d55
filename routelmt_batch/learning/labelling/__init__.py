"""Label: both models translate a parallel corpus, a metric scores both."""
