"""Quality metrics, on the x100 scale, each with its signature. They know texts, but no job."""
