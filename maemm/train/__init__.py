"""Training: the loop and what it stands on. It knows no report: what people see comes in as a callback."""
