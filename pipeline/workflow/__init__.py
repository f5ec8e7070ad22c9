"""All stages as one resumable run, and the doctor."""
