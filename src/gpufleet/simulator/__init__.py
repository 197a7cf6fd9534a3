"""Scheduling of the past, again and faster: public traces through policies, scored as their papers do."""
