"""Tables of measurements: their columns, how units of work become rows of one file, and how repeats are told."""
