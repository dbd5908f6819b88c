"""What each plan would gain: acceptance rates, recorded costs, the planner, calibration, cards."""
