"""What a person sees of a sweep: live, on request, and what its cells do not have in common."""
