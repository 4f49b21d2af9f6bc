"""From question to answer, one step a file: observe, propose, simulate, judge, order."""
