"""From a sweep file to a plan: cells, their commands, what they cost, whether each of them is right."""
