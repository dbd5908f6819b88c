"""What is measured: one file for each question, with its parameters, how it is measured and how it is drawn."""
