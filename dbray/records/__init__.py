"""What is at rest and means something: models, prior sets, results of jobs."""
