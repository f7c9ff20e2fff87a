"""What users write: a job and its sections, and what is wrong with them."""
