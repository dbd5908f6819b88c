"""What the notebooks measure: functions that return tidy tables."""
